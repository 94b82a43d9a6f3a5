"""Corrections: that they reach their lines and no others, and that they hold against the Opacity Project's values."""

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from hotdask.errors import InputError
from hotdask.library.atoms import data_folder
from hotdask.library.corrections import TABLE, Correction, correct, identity, read_corrections
from hotdask.library.linelist import LineList, read_lines
from hotdask.windows import air_to_vacuum

UNKNOWN = np.nan

EV = 4.135667696e-15
_RYDBERG = 13.6057


@dataclass(frozen=True)
class ModelAtom:
    """Of Lanz & Hubeny 2007: binding energy [eV] and weight of levels, and (lower, upper, f) of transitions."""

    binding: dict[str, float]
    weight: dict[str, float]
    lines: tuple[tuple[str, str, float], ...]

    def loggf(self, lower: str, upper: str) -> float:
        """Of the whole multiplet."""
        return float(np.log10(next(self.weight[a] * f for a, b, f in self.lines if (a, b) == (lower, upper))))

    def stark(self, lower: str, upper: str, kelvin: float) -> float:
        """log10 of the full width in angular frequency per electron [cm³/s]: Griem 1968, Phys. Rev. 165, 258, eq 8."""
        kt = 8.617333e-5 * kelvin
        total = 0.0
        for label in (lower, upper):
            for a, b, f in self.lines:
                if label not in (a, b):
                    continue
                energy = self.binding[a] - self.binding[b]
                # <r²> in units of a0² from the f of absorption or of emission.
                square = 3 * f * _RYDBERG / energy * (1 if label == a else self.weight[a] / self.weight[b])
                gaunt = np.interp(1.5 * kt / energy, [2, 3, 5, 10, 30, 100], [0.2, 0.24, 0.33, 0.56, 0.98, 1.33])
                total += square * gaunt
        half = 8 * (np.pi / 3) ** 1.5 * 1.054572e-27 * 5.29177e-9 / 9.10938e-28 * np.sqrt(_RYDBERG / kt) * total
        return float(np.log10(2 * half))


def read_atom(name: str) -> ModelAtom:
    binding, weight, lines, section = {}, {}, [], ""
    labels = []
    for row in (data_folder() / name).read_text().splitlines():
        words = row.replace("D", "E").split()
        if row.startswith("***"):
            section = row
        elif "Levels" in section:
            label = re.search("'(.*)'", row).group(1)
            labels.append(label)
            binding[label], weight[label] = float(words[0]) * EV, float(words[1])
        elif (
            "Line" in section and len(words) >= 8 and words[0].isdigit() and words[1].isdigit() and float(words[7]) > 0
        ):
            lines.append((labels[int(words[0]) - 1], labels[int(words[1]) - 1], float(words[7])))
    return ModelAtom(binding, weight, tuple(lines))


def line_list(*rows):
    """Rows of z, ion, wavelength in vacuum, loggf, elo, log_gstark."""
    z, ion, wavelength, loggf, elo, stark = (np.array(column) for column in zip(*rows, strict=True))
    unknown = np.full(len(z), UNKNOWN)
    return LineList(z, ion, wavelength * 1.0, loggf * 1.0, elo * 1.0, unknown, stark * 1.0, unknown, "some", "")


def correction(quantity, old, new, wavelength=4500.0, elo=2.0):
    return Correction(14, 2, wavelength, elo, quantity, old, new, "source", "reason")


def test_a_value_is_replaced_where_the_list_holds_the_old_one():
    lines = line_list(
        (14, 2, 4500.0, 0.1, 2.0, -5.5), (14, 2, 4500.001, 0.4, 2.0, UNKNOWN), (26, 2, 4500.0, 0.1, 2.0, 0)
    )
    made, applied = correct(lines, (correction("loggf", 0.1, 0.3), correction("gstark", -5.5, -5.0)))
    assert applied.tolist() == [True, True]
    assert made.loggf.tolist() == [0.3, 0.4, 0.1]
    np.testing.assert_array_equal(made.log_gstark, [-5.0, UNKNOWN, 0])
    assert lines.loggf.tolist() == [0.1, 0.4, 0.1]


def test_what_is_unknown_is_filled_and_what_is_known_kept():
    lines = line_list((14, 2, 4500.0, 0, 2.0, UNKNOWN), (14, 2, 4500.001, 0, 2.0, -5.2))
    made, applied = correct(lines, (correction("gstark", UNKNOWN, -5.0),))
    assert applied.all()
    assert made.log_gstark.tolist() == [-5.0, -5.2]


@pytest.mark.parametrize("change", [{"wavelength": 4500.01}, {"elo": 2.01}, {"old": 0.15}])
def test_another_line_is_left_alone(change):
    lines = line_list((14, 2, 4500.0, 0.1, 2.0, UNKNOWN))
    made, applied = correct(lines, (replace(correction("loggf", 0.1, 0.3), **change),))
    assert not applied.any()
    assert made.loggf.tolist() == [0.1]


def test_a_repetition_goes_if_what_it_repeats_is_there():
    both = line_list((14, 2, 4500.0, 0.1, 2.0, UNKNOWN), (14, 2, 4500.03, 0.0, 2.003, UNKNOWN))
    removal = (correction("remove", 0.1, 4500.03),)
    made, applied = correct(both, removal)
    assert applied.all()
    assert made.wavelength.tolist() == [4500.03]
    alone = line_list((14, 2, 4500.0, 0.1, 2.0, UNKNOWN))
    made, applied = correct(alone, removal)
    assert not applied.any()
    assert made.wavelength.tolist() == [4500.0]
    made, applied = correct(alone, (correction("remove", 0.1, UNKNOWN),))
    assert applied.all()
    assert len(made.z) == 0


def test_of_two_at_one_wavelength_the_one_with_the_value_goes():
    lines = line_list((14, 2, 4500.0, 0.105, 2.0, UNKNOWN), (14, 2, 4500.0, 0.1, 2.0, UNKNOWN))
    made, applied = correct(lines, (correction("remove", 0.1, 4500.0),))
    assert applied.all()
    assert made.loggf.tolist() == [0.105]


def test_every_correction_finds_its_line_in_the_real_list(synthesis):
    lines = read_lines(synthesis / "lines_hot.npz")
    made, applied = correct(lines)
    missed = [c for c, found in zip(read_corrections(), applied, strict=True) if not found]
    assert missed == []
    removed = sum(c.quantity == "remove" for c in read_corrections())
    assert len(made.z) == len(lines.z) - removed
    # Once applied there is nothing left to do.
    again, applied = correct(made)
    assert not applied.any()
    np.testing.assert_array_equal(again.loggf, made.loggf)


def total(lines, z, ion, elo, eup):
    upper = lines.elo + 12398.419843 / lines.wavelength
    rows = (lines.z == z) & (lines.ion == ion) & (np.abs(lines.elo - elo) < 0.04) & (np.abs(upper - eup) < 0.04)
    return np.log10(np.sum(10 ** lines.loggf[rows]))


@pytest.mark.parametrize(
    ("atom", "z", "ion", "lower", "upper", "elo", "eup"),
    [
        ("o2_36+12lev.dat", 8, 2, "O II 2Pe 1", "O II 2Do 2", 23.434, 26.238),  # 4415, 4417
        ("o2_36+12lev.dat", 8, 2, "O II 2Pe 1", "O II 2So 1", 23.434, 25.286),  # 6641, 6721
        ("o2_36+12lev.dat", 8, 2, "O II 2Po 2", "O II 2De 3", 26.558, 29.066),  # 4941, 4943
        ("si3.dat", 14, 3, "Si+2 3Se 1", "Si+2 3Po 2", 19.016, 21.735),  # 4553, 4568, 4575
        ("si3.dat", 14, 3, "Si+2 3Po 2", "Si+2 3De 2", 21.735, 24.993),  # 3796, 3807
        ("n3.dat", 7, 3, "N +2 2Se 2", "N +2 2Po 3", 27.438, 30.461),  # 4097, 4103
    ],
)
def test_multiplets_have_the_strength_of_the_opacity_project(synthesis, atom, z, ion, lower, upper, elo, eup):
    lines = read_lines(synthesis / "lines_hot.npz")
    expected = read_atom(atom).loggf(lower, upper)
    assert abs(total(lines, z, ion, elo, eup) - expected) > 0.09
    assert total(correct(lines)[0], z, ion, elo, eup) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("atom", "z", "ion", "lower", "upper", "wavelength"),
    [
        ("si2_36+4lev.dat", 14, 2, "SiII 2De 2", "SiII 2Fo 1", 4128.054),
        ("si2_36+4lev.dat", 14, 2, "SiII 2Po 2", "SiII 2De 3", 5055.984),
        ("si2_36+4lev.dat", 14, 2, "SiII 2Se 1", "SiII 2Po 2", 6347.109),
        ("mg2.dat", 12, 2, "MgII 2De 1", "MgII 2Fo 1", 4481.126),
        ("c2.dat", 6, 2, "C II 2Se 2", "C II 2Po 2", 6578.050),
        ("c2.dat", 6, 2, "C II 2De 2", "C II 2Fo 1", 4267.001),
    ],
)
def test_semiempirical_widths_follow_from_the_model_atoms(atom, z, ion, lower, upper, wavelength):
    found = [
        c.new
        for c in read_corrections()
        if (c.z, c.ion, c.quantity) == (z, ion, "gstark") and abs(c.wavelength - air_to_vacuum(wavelength)) < 0.01
    ]
    assert found == pytest.approx([read_atom(atom).stark(lower, upper, 15000.0)], abs=0.02)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("Xx,2,4500,2,loggf,0,1,a,b", "line 3: 'Xx'"),
        ("Si,2,4500,2,strength,0,1,a,b", "line 3: quantity 'strength'"),
        ("Si,2,4500,two,loggf,0,1,a,b", "line 3: could not convert"),
        ("Si,2,4500", "line 3: "),
    ],
)
def test_a_bad_row_is_told_with_its_number(tmp_path, row, message):
    path = tmp_path / "table.csv"
    path.write_text(f"# head\nelement,ion,wavelength,elo,quantity,old,new,source,reason\n{row}\n")
    with pytest.raises(InputError, match=message):
        read_corrections(str(path))


def test_a_missing_table(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_corrections(str(tmp_path / "none.csv"))


def test_identity_is_that_of_the_table():
    assert identity() == hashlib.sha256(Path(str(TABLE)).read_bytes()).hexdigest()
