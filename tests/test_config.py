"""Settings: read, checked, explained, written and hashed."""

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hotdask import config, windows
from hotdask.config import Fit, Settings, dump_settings, load_library_settings, load_settings, make_settings
from hotdask.errors import SettingsError
from hotdask.shipped import DEFAULT_EMULATOR, SHIPPED

MINIMAL = {"out": "RUN", "input": {"spectra": "data/**/*.fits*"}}


def write(path, text: str):
    path.write_text(text)
    return path


def refusal(data: dict, source: str = "my.toml") -> str:
    with pytest.raises(SettingsError) as caught:
        make_settings(data, source=source)
    message = str(caught.value)
    assert message.startswith(f"{source}: ")
    return message


class TestRefused:
    @pytest.mark.parametrize(
        ("section", "key"), [("fit", "max_iteration"), ("input", "spectrum"), ("cube", "size"), (None, "fits")]
    )
    def test_unknown_key(self, section, key):
        data = {**MINIMAL, key: 1} if section is None else {**MINIMAL, section: {**MINIMAL.get(section, {}), key: 1}}
        message = refusal(data)
        assert f"  {section + '.' if section else ''}{key}: " in message
        assert "unknown setting; `settings.toml` in the folder of any run lists all" in message

    @pytest.mark.parametrize(
        ("section", "key", "value"),
        [
            ("fit", "min_pixels", "many"),
            ("fit", "andmask_bits", 0x10000),
            ("fit", "continuum_tolerance", 0),
            ("fit", "mask", [[1, 2, 3]]),
            ("cube", "partition_size", 8),
            ("cube", "partition_size", 10.5),
            ("input", "limit", 0),
            ("input", "max_reject_share", 1.5),
            ("normalize", "cutoff", 2),
            ("normalize", "slope", "perhaps"),
            ("cluster", "workers", 0),
            ("report", "spectra", -1),
        ],
    )
    def test_wrong_value(self, section, key, value):
        message = refusal({**MINIMAL, section: {**MINIMAL.get(section, {}), key: value}})
        assert f"  {section}.{key}" in message
        assert "should" in message

    def test_both_sources(self):
        message = refusal({"out": "RUN", "input": {"spectra": "*.fits", "table": "list.csv"}})
        assert "input: give either input.spectra (a pattern) or input.table, not both and not neither" in message

    def test_neither_source(self):
        assert "input: give either input.spectra" in refusal({"out": "RUN", "input": {}})
        assert "  input: not given" in refusal({"out": "RUN"})

    def test_no_folder(self):
        assert "  out: " in refusal({"input": {"spectra": "*"}})
        assert "  out: " in refusal({**MINIMAL, "out": ""})

    def test_every_mistake_is_named_at_once(self):
        message = refusal({"out": "", "input": {"spectra": "*", "limit": -1}, "fit": {"masks": []}})
        for where in ("out", "input.limit", "fit.masks"):
            assert f"\n  {where}: " in message

    def test_missing_file(self, tmp_path):
        with pytest.raises(SettingsError, match=r"none\.toml: cannot read.*No such file.*check the path"):
            load_settings(tmp_path / "none.toml")

    def test_no_toml(self, tmp_path):
        path = write(tmp_path / "bad.toml", 'out = "RUN"\n[input\n')
        with pytest.raises(SettingsError, match=r"bad\.toml: not valid TOML \(.*line 2.*correct the line"):
            load_settings(path)

    def test_no_text(self, tmp_path):
        path = tmp_path / "binary.toml"
        path.write_bytes(b"\x89HDF\xff\xfe\x00")
        with pytest.raises(SettingsError, match=r"binary\.toml: not a text file.*give a TOML file"):
            load_settings(path)

    @pytest.mark.parametrize(
        ("store", "message"),
        [
            ({"cube": "RUN/spectra.zarr"}, "store.cube: 'RUN/spectra.zarr' is no URL; give one as s3://bucket/folder"),
            ({"catalog": "s3://bucket/"}, "store.catalog: 's3://bucket/' names no folder"),
            ({"catalog": "://bucket/a"}, "store.catalog: '://bucket/a' names no folder"),
            ({"catalog": "s3://bucket//a"}, "store.catalog: 's3://bucket//a' names no folder"),
            ({"cube": "s3://bucket/a", "catalog": "s3://bucket/a/"}, "store: s3://bucket/a lies in s3://bucket/a"),
            ({"cube": "s3://bucket/a/b", "catalog": "s3://bucket/a"}, "store: s3://bucket/a/b lies in s3://bucket/a"),
            ({"cube": "s3://bucket/a", "catalog": "s3://bucket/a/b"}, "store: s3://bucket/a/b lies in s3://bucket/a"),
        ],
        ids=str,
    )
    def test_a_place_that_is_none(self, store, message):
        assert f"  {message}" in refusal({**MINIMAL, "store": store})

    def test_a_section_that_is_no_section(self):
        assert "  fit: " in refusal({**MINIMAL, "fit": 3})


def test_settings_cannot_be_changed():
    chosen = make_settings(MINIMAL)
    with pytest.raises(ValidationError):
        chosen.fit.min_pixels = 100
    with pytest.raises(ValidationError):
        chosen.out = "elsewhere"


def test_defaults_are_those_of_the_method():
    chosen = make_settings(MINIMAL)
    assert chosen.normalize.scale == 50.0
    assert chosen.normalize.cutoff == 5.0
    assert chosen.normalize.slope
    assert chosen.fit.resolving_power_blue == chosen.fit.resolving_power_red == 1800
    assert chosen.fit.mask == tuple((w.low, w.high) for w in windows.FIT_MASK)
    assert chosen.catalog.match_radius == 3.0
    assert (chosen.catalog.min_teff, chosen.catalog.min_snr, chosen.catalog.max_chi2ratio) == (7000, 5, 10)
    assert chosen.catalog.pair_snr_tolerance == 0.2
    assert chosen.cube.partition_size == 1024
    assert chosen.cluster.dashboard.startswith("127.0.0.1:")


def test_every_setting_is_described():
    for section in Settings.model_fields.values():
        for name, field in getattr(section.annotation, "model_fields", {}).items():
            assert len(field.description or "") > 5, name


def test_file_and_overrides(tmp_path):
    path = write(
        tmp_path / "run.toml",
        'out = "RUN"\n[input]\nspectra = "a/*.fits"\nlimit = 5\n[fit]\nmask = [[5700, 6050.0]]\n',
    )
    plain = load_settings(path)
    assert (plain.out, plain.input.limit, plain.fit.mask) == ("RUN", 5, ((5700.0, 6050.0),))
    changed = load_settings(path, out="OTHER", input__limit=7, fit__min_pixels=99, cluster__workers=None)
    assert (changed.out, changed.input.limit, changed.fit.min_pixels) == ("OTHER", 7, 99)
    assert changed.input.spectra == ("a/*.fits",)
    assert changed.cluster.workers is None


def test_overrides_leave_what_they_were_given_alone():
    data = {"out": "RUN", "input": {"spectra": "*"}}
    make_settings(data, input__limit=3, fit__min_pixels=99)
    assert data == {"out": "RUN", "input": {"spectra": "*"}}


def test_a_wrong_override_is_named():
    with pytest.raises(SettingsError, match=r"command line: (?s:.*)input\.limits"):
        make_settings(MINIMAL, source="command line", input__limits=3)


TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)
NUMBER = st.floats(0, allow_nan=False)


@given(
    out=TEXT.filter(lambda text: "\0" not in text and "://" not in text),
    spectra=TEXT,
    classes=st.lists(TEXT, max_size=3),
    tolerance=st.floats(1e-300, 1e300),
    bits=st.integers(0, 0xFFFF),
    mask=st.lists(st.tuples(NUMBER, NUMBER), max_size=3),
    slope=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_toml_round_trip(out, spectra, classes, tolerance, bits, mask, slope):
    chosen = make_settings(
        {
            "out": out,
            "input": {"spectra": spectra, "classes": classes},
            "fit": {"continuum_tolerance": tolerance, "ormask_bits": bits, "mask": mask},
            "normalize": {"slope": slope},
        }
    )
    again = Settings.model_validate(tomllib.loads(dump_settings(chosen)))
    assert again == chosen
    assert again.fingerprint() == chosen.fingerprint()


@pytest.mark.parametrize("out", ['a "b" \\c\t\n', "\x7f", "\x01\x1f\x85", "Ω 🌟", "# not a comment"])
def test_toml_round_trip_of_odd_names(out):
    chosen = make_settings({"out": out, "input": {"spectra": out}})
    assert Settings.model_validate(tomllib.loads(dump_settings(chosen))) == chosen


def test_a_shipped_emulator_keeps_its_name_where_files_become_absolute(monkeypatch, tmp_path):
    # A worker on another machine has its package elsewhere.
    monkeypatch.chdir(tmp_path)
    for name in SHIPPED:
        assert make_settings(MINIMAL, fit__emulator=name).absolute().fit.emulator == name
        assert make_settings(MINIMAL, fit__compare=name).absolute().fit.compare == name
    for path in ("./lte", "own.safetensors"):
        found = make_settings(MINIMAL, fit__emulator=path, fit__compare=path).absolute().fit
        assert (found.emulator, found.compare) == (str(tmp_path / path),) * 2
    assert make_settings(MINIMAL).absolute().fit.emulator == DEFAULT_EMULATOR


@pytest.mark.parametrize(
    ("compare", "suffix"),
    [
        (None, None),
        ("", None),
        *((name, name) for name in SHIPPED),
        ("./lte", "compare"),
        ("lte.safetensors", "compare"),
    ],
)
def test_columns_of_a_second_emulator_are_called_by_its_name(compare, suffix):
    made = make_settings(MINIMAL, fit__compare=compare)
    assert (made.fit.compared, made.absolute().fit.compared) == (suffix, suffix)


def test_open_windows_survive_the_file():
    chosen = make_settings(
        {**MINIMAL, "fit": {"mask": [[8880, float("inf")]]}, "catalog": {"max_chi2ratio": float("inf")}}
    )
    text = dump_settings(chosen)
    assert "mask = [[8880.0, inf]]" in text
    assert Settings.model_validate(tomllib.loads(text)) == chosen
    assert json.loads(chosen.model_dump_json(include={"catalog"}))["catalog"]["max_chi2ratio"] == "Infinity"
    assert Fit(**json.loads(chosen.fit.model_dump_json())) == chosen.fit


class TestFingerprint:
    def test_it_is_stable(self):
        one, two = (make_settings(MINIMAL).fingerprint() for _ in range(2))
        assert one == two
        assert len(one) == 16
        int(one, 16)

    @pytest.mark.parametrize(
        "changes",
        [
            {"fit__continuum_tolerance": 1.0000000000000002e-3},
            {"fit__resolving_power_red": 1800.5},
            {"normalize__scale": 50.00001},
            {"normalize__slope": False},
            {"cube__partition_size": 512},
            {"catalog__min_teff": 7000.1},
            {"input__classes": ("O",)},
            {"fit__emulator": "other.safetensors"},
            {"fit__emulator": "./lte"},
            {"fit__compare": "lte"},
            {"fit__mask": ((0, 3820.0),)},
        ],
        ids=str,
    )
    def test_what_decides_a_result_changes_it(self, changes):
        assert make_settings(MINIMAL, **changes).fingerprint() != make_settings(MINIMAL).fingerprint()

    @pytest.mark.parametrize(
        "changes",
        [
            {"out": "ELSEWHERE"},
            {"cluster__workers": 7, "cluster__scheduler": "tls://x:1"},
            {"cluster__dashboard": "127.0.0.1:0"},
            {"report__spectra": 3, "report__truth": "truth.parquet"},
            {"store__cube": "s3://bucket/cube", "store__catalog": "s3://bucket/cubes"},
            # The files themselves are compared, and may be listed in another way.
            {"input__limit": 10, "input__max_reject_share": 0.9},
        ],
        ids=str,
    )
    def test_what_does_not_leaves_it(self, changes):
        assert make_settings(MINIMAL, **changes).fingerprint() == make_settings(MINIMAL).fingerprint()

    def test_sections(self):
        base, other = make_settings(MINIMAL), make_settings(MINIMAL, catalog__min_teff=8000)
        assert base.fingerprint("cube", "fit") == other.fingerprint("cube", "fit")
        assert base.fingerprint("catalog") != other.fingerprint("catalog")
        # Equal numbers written differently are equal.
        assert make_settings(MINIMAL, fit__continuum_tolerance=10e-3).fingerprint("fit") == base.fingerprint("fit")
        assert make_settings(MINIMAL, fit__resolving_power_red=1800).fingerprint() == base.fingerprint()


def test_sections_stand_for_themselves():
    for section in (config.Cube, config.Normalize, config.Fit, config.Catalog, config.Cluster, config.Report):
        assert section() == getattr(make_settings(MINIMAL), section.__name__.lower())


def test_library_settings_of_the_repository():
    found = load_library_settings(Path(__file__).parents[1] / "deploy" / "local" / "library.toml")
    assert found.engine.kind == "hotdask"
    assert found.sampling.n >= 5000


def test_brackets_without_end_are_no_settings(tmp_path):
    path = write(tmp_path / "deep.toml", "a = " + "[" * 100_000)
    with pytest.raises(SettingsError, match=r"deep\.toml: .*nested too deep"):
        load_settings(path)


@pytest.mark.parametrize("out", ["s3://bucket/RUN", "a\0b"])
def test_a_run_lies_in_a_folder(out):
    with pytest.raises(SettingsError, match="no folder of this machine"):
        make_settings({"out": out, "input": {"spectra": "a/*.fits"}})


def test_several_patterns(tmp_path):
    settings = make_settings({"out": "RUN", "input": {"spectra": ["a/*.fits", "/b/*.fits"]}}).absolute()
    assert settings.input.spectra == (str(Path("a/*.fits").absolute()), "/b/*.fits")
    (tmp_path / "s.toml").write_text(dump_settings(settings))
    assert load_settings(tmp_path / "s.toml") == settings
    with pytest.raises(SettingsError, match=r"input\.spectra"):
        make_settings({"out": "RUN", "input": {"spectra": []}})
