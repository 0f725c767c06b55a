"""Descriptions: TOML means what the same cell means in Python, and every mistake in it names its line."""

import pytest
import torch

import pnp
from pnp.__main__ import main
from pnp.command_line import units
from pnp.command_line.description import Transient, read_description
from pnp.command_line.toml_lines import DescriptionError, read_toml

from .descriptions import COPPER, ENDS, SALT, STEADY, TRANSIENT


@pytest.fixture
def write(tmp_path):
    """Write a description, and return its path."""

    def write(text, name="cell.toml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def test_a_periodic_cell(write):
    ends = '[left]\ntype = "periodic"\npotential_drop = "10 mV"\n[right]\ntype = "periodic"\n'
    cell = read_description(write(SALT + ends + '[run]\nkind = "steady"\n')).cell
    assert cell.left is cell.right
    assert cell.left.potential_drop.item() == 0.01


def test_reactions(write):
    text = SALT.replace("[cell]", '[[reaction]]\nproducts = {"K+" = 1, "Cl-" = 1}\nforward = "2e-3 M/s"\n'
                        'backward = "1e8 1/M/s"\n\n[cell]\nground = "40 nm"')  # fmt: skip
    transfer = (
        COPPER + 'standard_potential = "-0.1 V"\nstandard_concentration = "1 M"\ntransfer_coefficient = 0.4\n'
    )
    cell = read_description(write(text + ENDS + transfer + '[run]\nkind = "steady"\n')).cell
    (reaction,) = cell.electrolyte.reactions
    assert (dict(reaction.reactants), dict(reaction.products)) == ({}, {"K+": 1.0, "Cl-": 1.0})
    assert (reaction.forward.item(), reaction.backward.item()) == (2.0, 1e5)
    assert cell.ground.item() == 40e-9
    (transfer,) = cell.left.reactions + cell.right.reactions
    assert (dict(transfer.oxidised), dict(transfer.reduced)) == ({"K+": 1.0}, {})
    numbers = (transfer.rate_constant, transfer.standard_potential, transfer.transfer_coefficient)
    assert [number.item() for number in numbers] == [1e-5, -0.1, 0.4]
    assert transfer.standard_concentration.item() == 1000.0


WAVEFORMS = {
    '{kind = "step", before = 0, after = "10 mV", at = "2 ms"}': pnp.step(0.0, 0.01, at=2e-3),
    '{kind = "ramp", start = "-1 mV", end = "10 mV", duration = "3 ms"}': pnp.ramp(
        -1e-3, 0.01, duration=3e-3
    ),
    '{kind = "triangle", start = 0, vertex = "20 mV", rate = "10 V/s", cycles = 2}': pnp.triangle(
        0.0, 0.02, rate=10.0, cycles=2
    ),
    '{kind = "sine", amplitude = "5 mV", frequency = "0.3 kHz", offset = "1 mV", phase = "90 deg"}': pnp.sine(
        5e-3, 300.0, offset=1e-3, phase=torch.pi / 2
    ),
    '{kind = "piecewise_linear", times = ["1 ms", "2 ms"], values = ["1 mV", "2 mV"]}': pnp.piecewise_linear(
        [1e-3, 2e-3], [1e-3, 2e-3]
    ),
}


@pytest.mark.parametrize("text", WAVEFORMS)
def test_waveforms(text, write):
    given = read_description(write(STEADY.replace('"50 mV"', text))).cell.left.potential
    expected = WAVEFORMS[text]
    for time in (0.0, 0.5e-3, 1.5e-3, 2.5e-3, 5e-3):
        torch.testing.assert_close(given(time), expected(time), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(given.breaks, expected.breaks)


def test_a_current_that_varies_and_a_potential_that_is_swept_inside_a_waveform(write):
    current = 'current = {kind = "ramp", start = 0, end = "1 mA/cm^2", duration = "1 s"}'
    text = TRANSIENT.replace('potential = "50 mV"', current)
    assert read_description(write(text)).cell.left.current(1.0).item() == 10.0
    triangle = '{kind = "triangle", start = 0, vertex = "20 mV", rate = "10 V/s"}'
    text = TRANSIENT.replace('"50 mV"', triangle) + '[sweep]\nleft.potential.rate = ["1 V/s", "2 V/s"]\n'
    description = read_description(write(text))
    assert description.cell.left.potential(torch.full((2,), 1e-3)).tolist() == pytest.approx([1e-3, 2e-3])
    assert description.axes[0].name == "left_potential_rate"


def test_times_may_be_a_list_or_spread(write):
    spread = TRANSIENT.replace('["0 s", "10 ns", "1 us"]', '{from = "1 ns", to = "1 us", count = 4}')
    run = read_description(write(spread)).run
    assert isinstance(run, Transient)
    assert run.logarithmic
    torch.testing.assert_close(run.times, torch.tensor([1e-9, 1e-8, 1e-7, 1e-6], dtype=torch.float64))
    assert run.times[-1].item() == 1e-6
    run = read_description(write(TRANSIENT + "relative_tolerance = 1e-3\nabsolute_tolerance = 1e-7\n")).run
    assert (run.step_control.relative, run.step_control.absolute) == (1e-3, 1e-7)


#    what is replaced, by what, and what the message says
MISTAKES = {
    "wrong dimension": (
        '"100 nm"',
        '"50 mV"',
        'cell.length must be a length, such as "100 nm"; "50 mV" is a potential.',
    ),
    "no unit": (
        '"100 nm"',
        "1e-7",
        'cell.length must be a length with its unit, such as "100 nm"; got 1e-07.',
    ),
    "no unit in text": ('"100 nm"', '"100"', '"100" lacks its unit'),
    "unknown unit": ('"100 nm"', '"100 nn"', '"nn" is not a unit'),
    "no number": ('"100 nm"', '"wide"', '"wide" does not begin with a number'),
    "a truth for a number": ("valence = 1", "valence = true", "species.K+.valence must be a plain number"),
    "text for a number": ("valence = 1", 'valence = "1"', 'must be a plain number; got "1".'),
    "unknown key": ("nodes = 40", "nodse = 40", "[cell] has no key 'nodse'. Did you mean 'nodes'?"),
    "misspelt required key": ("length =", "lenght =", "[cell] has no key 'lenght'; did you mean 'length'?"),
    "key of another type": (
        "stern_capacitance",
        "charge",
        "[left] has no key 'charge'. Accepted: type, potential",
    ),
    "key of the top": ("nodes = 40", 'temperature = "300 K"', "It belongs at the top of the file"),
    "misspelt table": ("[cell]", "[cel]", "the file has no key 'cel'; did you mean 'cell'?"),
    "unknown top-level key": ("[[species]]", "titel = 3\n[[species]]", "Did you mean 'title'?"),
    "single brackets": (
        "[run]",
        COPPER.replace("[[left.reaction]]", "[left.reaction]") + "[run]",
        "write [[left.reaction]]",
    ),
    "unknown type": ('"electrode"', '"electrod"', "Did you mean 'electrode'?"),
    "one periodic end": ('"electrode"', '"periodic"', "periodic at both ends"),
    "nodes": ("nodes = 40", "nodes = 2", "cell.nodes must be a whole number of at least 3, got 2."),
    "flag": ("nodes = 40", "charged = 1", "cell.charged must be true or false, got 1."),
    "name": ('name = "K+"', "name = 3", "must be a text in quotes, got 3."),
    "name twice": ('name = "Cl-"', 'name = "K+"', 'there are two species of the name "K+".'),
    "refused by Species": ('"1.96e-9 m^2/s"', '"-1.96e-9 m^2/s"', "diffusivity must be above 0"),
    "refused by Electrode": ('"20 uF/cm^2"', '"-20 uF/cm^2"', "stern_capacitance must be above 0"),
    "refused by Cell": ("nodes = 40", 'ground = "200 nm"', "ground must lie inside the cell"),
    "refused filling": ('concentration = "10 mM"', 'concentration = "-10 mM"', "must be above 0"),
    "potential and current": ("[right]", 'current = "1 A/m^2"\n[right]', "one of the two"),
    "current both": ('potential = "50 mV"', 'potential = ["50 mV"]', "must be a potential"),
    "unknown waveform": ('"50 mV"', '{kind = "sinus"}', "Did you mean 'sine'?"),
    "waveform's key": (
        '"50 mV"',
        '{kind = "step", before = 0, after = "1 V", att = "1 s"}',
        "did you mean 'at'?",
    ),
    "refused by a waveform": (
        '"50 mV"',
        '{kind = "triangle", start = 0, vertex = "1 V", rate = "-1 V/s"}',
        "rate must be above 0",
    ),
    "angle for a frequency": (
        '"50 mV"',
        '{kind = "sine", amplitude = "1 mV", frequency = "1 rad/s"}',
        '"1 rad/s" counts angles',
    ),
    "unknown kind of run": ('"steady"', '"stead"', "Did you mean 'steady'?"),
    "no times": ('"steady"', '"transient"', "[run] needs the key 'times'."),
    "times": ('"steady"', '"transient"\ntimes = ["1 s", "1 ms"]', "run.times must increase from zero on."),
    "tolerance": ('"steady"', '"transient"\ntimes = ["1 s"]\nrelative_tolerance = 2', "between 0 and 1"),
    "times backwards": (
        '"steady"',
        '"transient"\ntimes = {from = "1 s", to = "1 ms", count = 3}',
        "run.times.to must be above run.times.from.",
    ),
    "logarithm of zero": (
        '"steady"',
        '"transient"\ntimes = {from = 0, to = "1 ms", count = 3}',
        'unless spacing = "linear"',
    ),
    "swept what is not": (
        "[run]",
        '[sweep]\nleft.potental = ["1 V"]\n[run]',
        "Did you mean 'left.potential'?",
    ),
    "swept one value": ("[run]", '[sweep]\nleft.potential = "1 V"\n[run]', "must be a list of values"),
    "swept unit": ("[run]", '[sweep]\nleft.potential = [\n"1 V",\n"2 nm"]\n[run]', '"2 nm" is a length'),
    "swept in step": (
        "[run]",
        '[sweep]\nleft.potential = ["1 V"]\ncell.length = ["1 nm", "2 nm"]\n[run]',
        "vary in step, but left.potential has 1 values and cell.length 2",
    ),
    "swept nothing": ("[run]", "[sweep]\n[run]", "sweep is empty"),
    "swept twice": (
        "[run]",
        '[[sweep]]\ncell.length = ["1 nm"]\n[[sweep]]\n"cell.length" = ["1 nm"]\n[run]',
        "twice",
    ),
    "layer": (
        "[run]",
        '[[layer]]\nfrom = "2 nm"\nto = "1 nm"\n[run]',
        "layer.1.to must lie beyond layer.1.from.",
    ),
    "charge of cell and layers": (
        "nodes = 40",
        'fixed_charge = "1 mM"\n[[layer]]\nfrom = "1 nm"\nto = "2 nm"',
        "either for the cell or for its layers",
    ),
    "not dimensionless": ("[[species]]", "dimensionless = 1\n[[species]]", "must be true or false"),
    "syntax": (
        '"100 nm"',
        "100 nm",
        "not TOML: Expected newline or end of document after a statement. Quantities",
    ),
    "unquoted name": ("[run]", "[left.x]\nK+ = 1\n[run]", "not TOML"),
    "unknown species": (
        "[run]",
        COPPER.replace("K+", "k+") + "[run]",
        "has no species 'k+'. Did you mean 'K+'?",
    ),
    "no electrons": ("[run]", COPPER.replace("K+", "Cl-") + "[run]", "must take up electrons"),
    "rate constant": (
        "[run]",
        COPPER.replace("m/s", "1/s") + "[run]",
        'must be a rate constant, such as "1e-5 m/s"',
    ),
    "order of a reaction": (
        "[cell]",
        '[[reaction]]\nreactants = {"K+" = 1, "Cl-" = 1}\nforward = "1 1/s"\nbackward = 0\n[cell]',
        "must be a rate constant of order 2",
    ),
    "charge of a reaction": (
        "[cell]",
        '[[reaction]]\nreactants = {"K+" = 1}\nforward = "1 1/s"\nbackward = 0\n[cell]',
        "must conserve charge",
    ),
}
LINES = {  # where the mistake is not on the first line that was put in
    "unknown top-level key": "titel",
    "single brackets": "[left.reaction]",
    "no electrons": "[[left.reaction]]",
    "unknown species": "oxidised",
    "rate constant": "rate_constant",
    "times": "times",
    "tolerance": "relative_tolerance",
    "times backwards": "times",
    "logarithm of zero": "times",
    "no times": "[run]",
    "potential and current": "potential =",
    "swept what is not": "left.potental",
    "swept one value": "left.potential",
    "swept unit": '"2 nm"]',
    "swept in step": "cell.length",
    "swept twice": '"cell.length"',
    "layer": 'to = "1',
    "unquoted name": "K+ = 1",
    "order of a reaction": "forward",
    "name twice": 'name = "K+"\nvalence = -1',
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_names_its_line(name, write, tmp_path, capsys):
    old, new, message = MISTAKES[name]
    text = STEADY.replace(old, new, 1)
    assert text != STEADY
    path = write(text)
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    start = text.index(LINES.get(name, new))
    line = text[:start].count("\n") + 1
    written = text.splitlines()[line - 1].strip()
    assert said.startswith(f"{path}, line {line}: {written}\n"), said
    assert message in said
    assert said.count("\n") == 2
    assert not (tmp_path / "out").exists()


def test_mistakes_of_whole_files(write, tmp_path, capsys):
    for text, message in {
        "": "the file needs at least one table [[species]].",
        SALT: "the file needs a table [left].",
        SALT + ENDS: "the file needs a table [run].",
        STEADY.replace('"10 mM"', '"10 mM'): "line 5",
    }.items():
        assert main([str(write(text))]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "latin.toml").write_bytes("title = 'é'".encode("latin-1"))
    assert main([str(tmp_path / "latin.toml")]) == 2
    assert "must be UTF-8 text" in capsys.readouterr().err
    assert main([str(tmp_path / "missing.toml")]) == 2
    assert "missing.toml" in capsys.readouterr().err
    out = write("", "file")
    assert main([str(write(STEADY)), "--out", str(out)]) == 2
    assert "results go into a folder" in capsys.readouterr().err


def test_what_solvers_refuse_names_its_line_too(write, capsys):
    blocking = STEADY.replace('potential = "50 mV"', 'current = "1 A/m^2"')
    assert main([str(write(blocking))]) == 2
    said = capsys.readouterr().err
    assert 'line 19: current = "1 A/m^2"' in said
    assert "a current through a blocking electrode" in said


def test_a_bath_that_is_not_neutral_points_at_its_end(write):
    text = STEADY.replace("potential = 0", 'potential = 0\nconcentrations = {"K+" = "1 mM", "Cl-" = "2 mM"}')
    text = text.replace('[right]\ntype = "electrode"', '[right]\ntype = "reservoir"')
    with pytest.raises(DescriptionError, match="right reservoir must be neutral") as caught:
        read_description(write(text))
    assert text.splitlines()[caught.value.line - 1].startswith(("[right]", "concentrations"))
    negative = text.replace('"2 mM"', '"-2 mM"')
    with pytest.raises(DescriptionError, match=r"concentrations = .*\n.*at least 0, got -2"):
        read_description(write(negative))


TRICKY = r'''# comment = 3
title = """many
lines, a "quoted" [word] = 3"""  # and a comment
a.b . "c.d" = 1
"K\u207A" = 'it''s'
[left]
potential = {kind = "triangle", times = [1, 2], day = 1979-05-27 07:32:00}
[[left.reaction]]
x = 1
[[left.reaction]]
x = [
  "1 nm", # one ]
  {a = 1, b = [
     2,
     3 ]},
  [],
]
[left.reaction.sub]
y = -1.5e-9
[ "s p" . q ]
z = """"edge""""
[[species]]
[[species]]
name = "x"
'''.replace("it''s", "it ] = s")


def test_every_value_of_a_toml_file_has_its_line(write):
    document = read_toml(write(TRICKY))

    def places(value, place=()):
        yield place
        if isinstance(value, dict):
            for key, part in value.items():
                yield from places(part, (*place, key))
        elif isinstance(value, list):
            for index, part in enumerate(value):
                yield from places(part, (*place, index))

    assert {*places(document.content)} - {()} == set(document.lines)
    for place, line in {
        ("title",): 2,
        ("a", "b", "c.d"): 4,
        ("K⁺",): 5,
        ("left", "potential", "day"): 7,
        ("left", "reaction", 0, "x"): 9,
        ("left", "reaction", 1, "x", 0): 12,
        ("left", "reaction", 1, "x", 1, "a"): 13,
        ("left", "reaction", 1, "x", 1, "b", 1): 15,
        ("left", "reaction", 1, "sub", "y"): 19,
        ("s p", "q", "z"): 21,
        ("species", 1, "name"): 24,
    }.items():
        assert document.lines[place] == line, place


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("10 mM", units.CONCENTRATION, 10.0),
        ("1e-2 mol/L", units.CONCENTRATION, 10.0),
        ("-5 °C", units.TEMPERATURE, 268.15),
        ("−5 degC", units.TEMPERATURE, 268.15),
        ("300 K", units.TEMPERATURE, 300.0),
        ("3Å", units.LENGTH, 3e-10),
        ("1.33e-9 m²/s", units.DIFFUSIVITY, 1.33e-9),
        ("1.33e-5 cm^2/s", units.DIFFUSIVITY, 1.33e-9),
        ("-1 e/nm^2", units.CHARGE, -0.1602176634),
        ("1 mA cm⁻²", units.CURRENT, 10.0),
        ("20 µF/cm^2", units.CAPACITANCE, 0.2),
        ("50 mV/s", units.SCAN_RATE, 0.05),
        ("1.4e11 1/M/s", units.rate_constant(2), 1.4e8),
        ("3 1/min", units.rate_constant(1), 0.05),
        (0, units.LENGTH, 0.0),
        (3, units.NUMBER, 3.0),
    ],
)
def test_units(text, kind, value):
    assert units.to_si(text, kind) == pytest.approx(value, rel=1e-14)


@pytest.mark.parametrize(
    "text", ["1 m**", "1 m)(", "1 m + s", "1 m^m", "1 mV(", "1 m**9999999999**99", "1 2 m"]
)
def test_text_that_is_no_unit(text):
    with pytest.raises(ValueError, match=r"must be a length, such as \"100 nm\""):
        units.to_si(text, units.LENGTH)
