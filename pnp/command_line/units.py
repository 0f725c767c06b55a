"""Quantities with units, as people write them: "100 nm" is 1e-7 m. Needs pint, which is imported when used."""

import functools
import re
from typing import Any, NamedTuple

_QUANTITY = re.compile(
    r"\s*(?P<number>[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<unit>.*?)\s*", re.DOTALL
)


class Kind(NamedTuple):
    """What a quantity measures: its SI unit, its name in a sentence, and an example of how to write it."""

    unit: str
    what: str
    example: str


NUMBER = Kind("", "a plain number", "1")
LENGTH = Kind("m", "a length", '"100 nm"')
DIFFUSIVITY = Kind("m^2/s", "a diffusivity", '"1.33e-9 m^2/s"')
CONCENTRATION = Kind("mol/m^3", "a concentration", '"10 mM"')
TEMPERATURE = Kind("K", "a temperature", '"25 degC"')
TIME = Kind("s", "a time", '"1 us"')
FREQUENCY = Kind("Hz", "a frequency", '"1 kHz"')
POTENTIAL = Kind("V", "a potential", '"50 mV"')
CURRENT = Kind("A/m^2", "a current density", '"1 A/m^2"')
SCAN_RATE = Kind("V/s", "a scan rate", '"0.1 V/s"')
CURRENT_RATE = Kind("A/m^2/s", "a rate of a current density", '"1 A/m^2/s"')
CHARGE = Kind("C/m^2", "a surface charge", '"-0.05 C/m^2"')
CAPACITANCE = Kind("F/m^2", "a capacitance per area", '"0.2 F/m^2"')
VELOCITY = Kind("m/s", "a rate constant", '"1e-5 m/s"')
ANGLE = Kind("rad", "an angle", '"90 deg"')

_KINDS = (
    *(LENGTH, DIFFUSIVITY, CONCENTRATION, TEMPERATURE, TIME, FREQUENCY, POTENTIAL, CURRENT),
    *(SCAN_RATE, CURRENT_RATE, CHARGE, CAPACITANCE, VELOCITY),
)


def rate_constant(order: float) -> Kind:
    """Rate constant in the electrolyte of a reaction of this order, in (mol/m³)^(1 − order) / s."""
    example = {0.0: '"1.4e-3 M/s"', 1.0: '"1e3 1/s"', 2.0: '"1.4e11 1/M/s"'}
    unit = f"(mol/m^3)^({1 - order:g})/s"
    return Kind(unit, f"a rate constant of order {order:g}", example.get(order, f'"1 {unit}"'))


def to_si(given: Any, kind: Kind, *, dimensionless: bool = False) -> float:
    """The SI value of what stands in a file; with `dimensionless`, that number itself.

    Zero needs no unit. Raises ValueError that begins with "must be" and says what is accepted.
    """
    wanted = NUMBER if dimensionless else kind
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise ValueError(f"must be {wanted.what}, such as {wanted.example}; got {given!r}.")
    if wanted is NUMBER or given == 0:
        if isinstance(given, str):
            where = " in a dimensionless cell" if dimensionless else ""
            raise ValueError(f'must be a plain number{where}; got "{given}".')
        return float(given)
    if not isinstance(given, str):
        raise ValueError(f"must be {kind.what} with its unit, such as {kind.example}; got {given:g}.")
    return _from_text(given, kind)


def prefix(size: float) -> tuple[str, float]:
    """SI prefix that suits a number of this size, and what to multiply it with: 5e-6 is 5 µ, factor 1e6."""
    steps = (("n", 1e9), ("µ", 1e6), ("m", 1e3), ("", 1.0), ("k", 1e-3), ("M", 1e-6), ("G", 1e-9))
    suitable = [step for step in steps if abs(size) * step[1] < 1000]
    return suitable[0] if size and suitable else ("", 1.0)


def with_prefix(value: float, unit: str) -> str:
    """A number and its unit for people: `10 µs`; without a unit the number alone."""
    letter, factor = prefix(value) if unit else ("", 1.0)
    return f"{value * factor:.4g} {letter}{unit}".strip()


def _from_text(text: str, kind: Kind) -> float:
    def refuse(why: str) -> ValueError:
        return ValueError(f"must be {kind.what}, such as {kind.example}; {why}.")

    found = _QUANTITY.fullmatch(text.replace("−", "-"))
    if not found:
        raise refuse(f'"{text}" does not begin with a number')
    if not found["unit"]:
        raise refuse(f'"{text}" lacks its unit')
    units = _parsed(found["unit"])
    if units is None:
        raise refuse(f'"{found["unit"]}" is not a unit')
    quantity = _registry().Quantity(float(found["number"]), units)
    target = _registry().Quantity(1.0, kind.unit)
    if quantity.dimensionality != target.dimensionality:
        raise refuse(f'"{text}" is {_described(quantity)}')
    if kind is not ANGLE and "radian" in str(quantity.to_root_units().units):
        # pint counts a radian as the number one, and would take 1 rad/s for 1 Hz.
        raise refuse(f'"{text}" counts angles')
    # Fifteen digits undo the rounding of the conversion: 10 mM is 10 mol/m³ and not 9.999999999999998.
    return float(f"{quantity.to(target.units).magnitude:.15g}")


def _parsed(unit: str) -> Any:
    """Units of pint, or None. Units alone are parsed, because pint would evaluate whole expressions."""
    registry = _registry()
    try:
        return registry.parse_units(unit)
    except (
        Exception
    ):  # pint fails in many ways on text that is not a unit: syntax, types, assertions, overflow
        return None


def _described(quantity: Any) -> str:
    for kind in _KINDS:
        if quantity.dimensionality == _registry().Quantity(1.0, kind.unit).dimensionality:
            return kind.what
    return f"of dimension {quantity.dimensionality}"


@functools.cache
def _registry() -> Any:
    try:
        import pint
    except ImportError as error:
        raise ImportError("Quantities with units need pint: pip install 'pnp-fusion[simulate]'.") from error
    return pint.UnitRegistry()
