"""How good a trained layer is, with every modality and with some missing."""
