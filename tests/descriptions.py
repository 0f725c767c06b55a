"""Cells as TOML, for the tests of descriptions and of the command line."""

SALT = """\
[[species]]
name = "K+"
valence = 1
diffusivity = "1.96e-9 m^2/s"
concentration = "10 mM"

[[species]]
name = "Cl-"
valence = -1
diffusivity = "2.03e-9 m^2/s"
concentration = "10 mM"

[cell]
length = "100 nm"
nodes = 40
"""
ENDS = """
[left]
type = "electrode"
potential = "50 mV"
stern_capacitance = "20 uF/cm^2"

[right]
type = "electrode"
potential = 0
"""
STEADY = SALT + ENDS + '\n[run]\nkind = "steady"\n'
TRANSIENT = SALT + ENDS + '\n[run]\nkind = "transient"\ntimes = ["0 s", "10 ns", "1 us"]\n'
COPPER = '\n[[left.reaction]]\noxidised = {"K+" = 1}\nrate_constant = "1e-5 m/s"\n'
