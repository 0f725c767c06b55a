"""Figures: what is drawn is what was solved, and nothing is left unlabelled."""

import dataclasses

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot

import pnp
from fusion.data.datasets import digits_two_views, shared_private
from fusion.grounded.subspaces import dissociate
from fusion.grounded.transport import migrate
from fusion.plotting import (
    animate_channels,
    plot_channels,
    plot_comparison,
    plot_gates,
    plot_history,
    plot_migration,
    plot_parts,
    plot_sharing,
)
from pnp.plotting import plot_current, plot_profiles, plot_space_time, species_colors, units

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    pyplot.close("all")


def salt_cell(voltage=0.05, length=200e-9):
    ions = [pnp.Species("K+", valence=1, diffusivity=2e-9), pnp.Species("Cl-", valence=-1, diffusivity=2e-9)]
    return pnp.Cell(
        pnp.Electrolyte(ions),
        length=length,
        concentrations=1.0,
        left=pnp.Electrode(potential=voltage),
        right=pnp.Electrode(potential=-torch.as_tensor(voltage)),
    )


@pytest.fixture(scope="module")
def transient():
    return pnp.solve_transient(salt_cell(), pnp.Grid.refined(salt_cell(), 40), times=[0.0, 1e-7, 1e-5])


def labelled(ax):
    return bool(ax.get_xlabel()) and bool(ax.get_ylabel())


def test_profiles_draw_every_species_and_the_potential_in_their_units(transient):
    ax = plot_profiles(transient)
    assert labelled(ax)
    assert ax.get_xlabel() == "position (nm)"
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert list(lines) == ["K+", "Cl-"]
    torch.testing.assert_close(torch.tensor(lines["K+"].get_ydata()), transient.concentrations[-1, 0])
    potential = ax.figure.axes[1].get_lines()[0].get_ydata()
    torch.testing.assert_close(torch.tensor(potential), transient.potential[-1] * 1e3)
    assert ax.figure.axes[1].get_ylabel() == "potential (mV)"


def test_profiles_of_several_moments_and_of_one_element_of_a_batch(transient):
    assert len(plot_profiles(transient, moments=[0, 1, 2], log=True).get_lines()) == 6
    cell = salt_cell(torch.tensor([0.01, 0.05]))
    batch = pnp.solve_steady(cell, pnp.Grid.refined(cell, 40))
    drawn = plot_profiles(batch, element=1).get_lines()[0].get_ydata()
    torch.testing.assert_close(torch.tensor(drawn), batch.concentrations[1, 0])


def test_profiles_show_the_ground_where_it_is():
    cell = dataclasses.replace(salt_cell(), ground=torch.tensor([50e-9, 120e-9]))
    steady = pnp.solve_steady(cell, pnp.Grid.refined(cell, 41))
    (ground,) = [one for one in plot_profiles(steady, element=1).get_lines() if one.get_label() == "ground b"]
    assert ground.get_xdata()[0] == pytest.approx(120)


def test_space_time_and_current_have_axes_with_units(transient):
    ax = plot_space_time(transient, "Cl-")
    assert ax.get_ylabel() == "time (µs)"
    assert ax.figure.axes[-1].get_ylabel() == "Cl- (mM)"
    ax = plot_current(transient)
    assert labelled(ax)
    expected = pnp.current_density(transient)[1:, 0].abs()
    torch.testing.assert_close(torch.tensor(ax.get_lines()[0].get_ydata()), expected)


def test_a_steady_state_has_no_time_axis():
    steady = pnp.solve_steady(salt_cell(), pnp.Grid.refined(salt_cell(), 40))
    with pytest.raises(ValueError, match="plot_current: the solution is a steady state"):
        plot_current(steady)
    with pytest.raises(ValueError, match="plot_space_time: the solution is a steady state"):
        plot_space_time(steady)


def test_an_unknown_species_is_named(transient):
    with pytest.raises(ValueError, match=r"species must be one of \['K\+', 'Cl-'\] or an index, got 'Na\+'"):
        plot_space_time(transient, "Na+")


@pytest.mark.parametrize(("length", "label"), [(50e-9, "nm"), (5e-6, "µm"), (5e-3, "mm")])
def test_lengths_get_a_suitable_unit(length, label):
    assert units(pnp.solve_steady(salt_cell(1e-3, length)))[0].label == label


def test_cations_are_vermilion_and_anions_blue(transient):
    assert species_colors(transient) == ["#D55E00", "#0072B2"]


@pytest.fixture(scope="module")
def subspaces():
    return dissociate(digits_two_views().modalities)


def test_pictures_of_migration(subspaces):
    channels = subspaces.channels["frequencies"]
    way = migrate(channels.cell, nodes=21, relative=1e-2, times=torch.logspace(-5, 0.3, 11).double())
    ax = plot_migration(channels, way, title="frequencies")
    assert labelled(ax)
    assert ax.get_title().startswith("frequencies: 20 channels, total charge")
    assert len(ax.get_lines()) == 20 + 1  # and the ground
    ax = plot_channels(channels, way, moment=10)
    assert labelled(ax)
    assert ax.images[0].get_array().shape[0] == 20
    assert labelled(plot_channels(channels))
    with pytest.raises(ValueError, match="must be a transient"):
        plot_migration(channels, channels.solution)


def test_gates_are_drawn_for_every_modality(subspaces):
    ax = plot_gates(subspaces)
    alone, drawn = ax.get_lines()[:2]
    channels = subspaces.channels["pixels"]
    torch.testing.assert_close(torch.tensor(drawn.get_ydata()), channels.gates)
    torch.testing.assert_close(torch.tensor(drawn.get_xdata()), channels.valences)
    # In a dilute cell gates are all but those of ions alone.
    near = np.interp(channels.valences, alone.get_xdata(), alone.get_ydata())
    torch.testing.assert_close(torch.from_numpy(near), channels.gates, atol=0.02, rtol=0)
    text = ax.get_legend().get_texts()[1].get_text()
    assert text.startswith("pixels: 12.9 of 32 invariant")
    assert text.endswith(f"total charge {float(channels.valences.sum()):+.2f}")


def test_sharing_and_parts_are_drawn_as_they_were_found():
    features, _ = shared_private(
        1500, {"a": 14, "b": 12, "c": 10}, shared=1, private=2, pairwise=2, noise=0.3
    )
    found = dissociate(features.modalities)
    sharing = found.shared_by()["a"]
    ax = plot_sharing(sharing, title="a")
    assert labelled(ax)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a+b+c: 1", "a+b: 2", "a+c: 2"]
    drawn = torch.tensor(ax.images[0].get_array().filled())
    assert sorted(drawn[:, 1].tolist()) == sorted(sharing.r_squared["c"].tolist())
    ax = plot_parts(found)
    assert labelled(ax)
    # Bars of every part add up to the channels.
    widths = torch.tensor([[bar.get_width() for bar in bars] for bars in ax.containers])
    assert widths.sum(0).tolist() == [14, 12, 10]
    charges = [text.get_text() for text in ax.texts if text.get_text().startswith("charge")]
    assert charges == [f"charge {float(one.valences.sum()):+.2f}" for one in found.channels.values()]


def test_films_are_written_whole_or_not_at_all(tmp_path):
    features, _ = shared_private(300, {"a": 3, "b": 2}, shared=1, private=1)
    channels = dissociate(features.modalities, voltage=4.0).channels["a"]
    way = migrate(channels.cell, nodes=21, times=torch.tensor([0.0, 1e-3, 1.0]).double())
    for name in ("film.gif", "film.html"):
        animate_channels(channels, tmp_path / name, way, title="a")
    assert (tmp_path / "film.gif").read_bytes()[:6] == b"GIF89a"
    assert (tmp_path / "film.html").read_text(encoding="utf-8").count("<img") == 3
    assert {file.name for file in tmp_path.iterdir()} == {"film.gif", "film.html"}
    with pytest.raises(ValueError, match=r"must end in \.gif or \.html, got 'film\.mp4'"):
        animate_channels(channels, tmp_path / "film.mp4", way)
    with pytest.raises(ValueError, match="must be a transient"):
        animate_channels(channels, tmp_path / "film.gif", channels.solution)


def test_comparison_and_history():
    class Found:
        def rows(self):
            return [
                {
                    "layer": layer,
                    "case": case,
                    "metric": "accuracy",
                    "mean": 0.9,
                    "half_width": spread,
                }
                for layer, spread in (("gmf", 0.01), ("sum", None))
                for case in ("all", "without pixels")
            ]

    ax = plot_comparison(Found())
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["all", "without pixels"]
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"gmf", "sum"}
    assert labelled(plot_history({"train": [1.0, 0.5], "validation": [1.1, 0.7]}))
