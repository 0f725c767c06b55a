"""Constants of nature in SI units: defaults of :class:`~pnp.electrolyte.Electrolyte`.

Written out because importing them from `scipy.constants` takes as long as the rest of this package.

References:
    The International System of Units, 9th ed., BIPM (2019), where all but the permittivity are exact;
    CODATA 2022 recommended values, NIST.
"""

AVOGADRO = 6.02214076e23
"""Particles in a mole [mol⁻¹]."""
FARADAY = 1.602176634e-19 * AVOGADRO
"""Charge of a mole of elementary charges [C mol⁻¹]."""
GAS = 1.380649e-23 * AVOGADRO
"""Energy over amount and temperature [J mol⁻¹ K⁻¹]."""
VACUUM_PERMITTIVITY = 8.8541878188e-12
"""[F m⁻¹], to a relative uncertainty of 1.6e-10."""
