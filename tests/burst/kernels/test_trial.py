"""What "auto" means on a GPU: the fastest cut that a trial finds right, torch with a warning else.

The trial itself runs under Triton's interpreter; a GPU is stood for by its name.
"""

import json
import subprocess
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import backbone_of, vit

from burst import kernels
from burst.axis import FloatAxis, RegularAxis
from burst.errors import BackendError, BackendWarning
from burst.histogram import Histogram
from burst.kernels import (
    _trial,
    _variant,
    accumulator,
    choose,
    histogram,
    matmul_histogram,
    reference,
)
from burst.kernels._choice import trusted
from burst.kernels._resources import Limits, Misfit, Usage
from burst.kernels._tiles import COUNTERS, Tile, counters_for
from burst.kernels._trial import NoCut, Trial
from burst.kernels._variant import Variant, alike
from burst.survey import SurveyOptions, images_for, survey

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
TILE = Tile(16, 16, 16, 4, 2, 1, (0, 1), "scratch")
MARGINS = Tile(128, 256, 16, 4, 2, 1, (0, 1), "scratch")
STREAM = Tile(8, 1024, 1, 8, 1, 2, (1, 0), "scratch")
INTERPRETED = ("scratch", "registers")
OPERANDS = {
    "rows": lambda: (torch.zeros(20, 48), torch.zeros(40, 48).mT),
    "bfloat16": lambda: (torch.zeros(20, 48).bfloat16(), torch.zeros(40, 48).bfloat16().mT),
    "mixed": lambda: (torch.zeros(20, 48), torch.zeros(40, 48).half().mT),
    "head": lambda: (torch.zeros(20, 72), torch.zeros(40, 72).mT),
    "strided": lambda: (torch.zeros(40, 96)[::2, ::2], torch.zeros(96, 80)[::2, ::2]),
    "unaligned": lambda: (torch.zeros(20, 49)[:, 1:], torch.zeros(40 * 48 + 1)[1:].view(48, 40)),
}


def _triton():
    pytest.importorskip("triton", reason="Triton is not installed")
    from burst.kernels import _triton

    return _triton


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch, tmp_path):
    monkeypatch.setattr(_trial, "_chosen", {})
    monkeypatch.setattr(_trial, "_warned", set())
    monkeypatch.setenv("BURST_CACHE", str(tmp_path))


@pytest.fixture
def new_gpu(monkeypatch):
    """A GPU that Triton can be used on, as far as one can tell without running anything."""
    monkeypatch.setattr(_trial, "installed", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(_triton(), "INTERPRETED", False)
    monkeypatch.setattr(_trial, "_no_launcher", lambda: None)


# What is tried is what will run


@pytest.mark.parametrize("kind", OPERANDS)
def test_an_operand_like_another_compiles_to_the_same_code(kind):
    for x in OPERANDS[kind]():
        like = alike(x, (144, 1000), _variant.integers)
        assert _variant._kind(like) == _variant._kind(x)
        assert like.shape == (144, 1000)
        assert set(like.unique().tolist()) == {-3, -2, -1, 0, 1, 2, 3}


@settings(max_examples=50)
@given(
    strides=st.tuples(*[st.sampled_from([0, 1, 2, 15, 16, 17, 768, 2**31])] * 2),
    shape=st.tuples(*[st.integers(1, 50)] * 2),
)
def test_strides_of_a_kind_are_small_and_their_order_stays(strides, shape):
    x = torch.empty(0).as_strided((0, 0), strides)
    found = _variant._strides(x, shape)
    for given_, small in zip(strides, found, strict=True):
        assert min(given_, 2) == min(small, 2)
        assert given_ < 2 or (given_ % 16 == 0) == (small % 16 == 0)
    if strides[0] > strides[1] > 0:
        assert found[0] >= found[1] * shape[1]
    assert max(found) <= 17 * 50 * 17


def names(*changes):
    a, b = OPERANDS["rows"]()
    base = {"a": a, "b": b, "axis": FloatAxis(), "precision": "tf32x3"}
    return [Variant.of_product(**(base | change)).name for change in ({}, *changes)]


def test_each_thing_that_is_compiled_in_has_a_trial_of_its_own():
    others = [dict(zip("ab", OPERANDS[kind](), strict=True)) for kind in OPERANDS if kind != "rows"]
    axes = [FloatAxis(8), RegularAxis(256, -1, 1), RegularAxis(3000, -1, 1)]
    found = names(
        *others,
        *({"axis": axis} for axis in (*axes, RegularAxis(20_000, -1, 1))),
        {"precision": "ieee"},
        {"a": torch.zeros(20, 40), "b": torch.zeros(40, 40).mT},  # no whole blocks of 16
        {"a": torch.zeros(20, 768), "b": torch.zeros(40, 768).mT},  # a longer product
        {"margins": True},
    )
    assert len(set(found)) == len(found)


def test_sizes_that_are_not_compiled_in_share_a_trial():
    a, b = torch.zeros(333, 48), torch.zeros(7, 48).mT
    assert len(set(names({"a": a, "b": b}, {"axis": FloatAxis(7, -5, 5)}))) == 1
    one, other = (Variant.of_stream(torch.zeros(size), FloatAxis()).name for size in (5, 64))
    assert one == other


@pytest.mark.parametrize("counter", INTERPRETED)
@pytest.mark.parametrize("kind", ["bfloat16", "head", "strided"])
def test_products_pass_their_trial(kind, counter, device):
    operands = (x.to(device) for x in OPERANDS[kind]())
    before = torch.get_rng_state()
    tile = Tile(128, 256, 16, 4, 2, 1, (0, 1), counter)
    assert _trial.failure(Variant.of_product(*operands, FloatAxis(), "tf32x3"), tile) is None
    assert torch.equal(torch.get_rng_state(), before)


def test_products_with_margins_pass_their_trial(device):
    operands = (x.to(device) for x in OPERANDS["bfloat16"]())
    variant = Variant.of_product(*operands, FloatAxis(), "tf32x3", margins=True)
    assert _trial.failure(variant, MARGINS) is None


def test_an_accumulator_with_margins_asks_for_the_variant_that_keeps_them(device, monkeypatch):
    asked = []

    def fastest(variant, candidates, device):
        asked.append(variant.name.endswith("with margins"))
        return TILE

    monkeypatch.setattr(_trial, "fastest", fastest)
    monkeypatch.setattr(_triton(), "INTERPRETED", False)
    for margins in (True, False):
        found = _triton().Accumulator(FloatAxis(), device, margins=margins)
        found._product_cut(*(x.to(device) for x in OPERANDS["rows"]()), "tf32x3")
    assert asked == [True, False]


@pytest.mark.parametrize("axis", [FloatAxis(), RegularAxis(256, -9.0, 9.5)], ids=str)
@pytest.mark.parametrize("counter", INTERPRETED)
def test_tensors_pass_their_trial(counter, axis, device):
    variant = Variant.of_stream(torch.zeros(9, dtype=torch.float16, device=device), axis)
    assert _trial.failure(variant, replace(STREAM, counter=counter)) is None


# What is found out


def lie_about(what, monkeypatch):
    """Make measurements return nearly what they found."""
    honest = _triton().Accumulator.result

    def lie(self):
        form = honest(self).to_dict()
        if what == "counts":
            place = form["counts"].index(max(form["counts"]))
            form["counts"][place] -= 1
            form["counts"][place + 1] += 1
        else:
            form["moments"][2] *= 1.001
        return Histogram.from_dict(form)

    monkeypatch.setattr(_triton().Accumulator, "result", lie)


@pytest.mark.parametrize("what", ["counts", "moments"])
def test_a_kernel_that_lies_is_found_out(what, device, monkeypatch):
    lie_about(what, monkeypatch)
    variant = Variant.of_stream(torch.zeros(9, device=device), FloatAxis())
    assert _trial.failure(variant, STREAM) == "counts wrongly"


@pytest.mark.parametrize("part, name", [("rows", "m4"), ("rows", "mean"), ("columns", "ss")])
def test_a_kernel_that_lies_about_margins_is_found_out(part, name, device, monkeypatch):
    honest = _triton().Accumulator.margins

    def lie(self):
        found = honest(self)
        one = getattr(found, part)
        lied = replace(one, **{name: getattr(one, name) * 1.001})
        return replace(found, **{part: lied})

    monkeypatch.setattr(_triton().Accumulator, "margins", lie)
    operands = (x.to(device) for x in OPERANDS["rows"]())
    variant = Variant.of_product(*operands, FloatAxis(), "tf32x3", margins=True)
    assert _trial.failure(variant, MARGINS) == "sums margins wrongly"


@pytest.mark.parametrize(
    "error, words",
    [
        (RuntimeError("PTXAS error\nlong story"), "does not run: RuntimeError: PTXAS error"),
        (subprocess.CalledProcessError(1, ["cc"]), "does not run: CalledProcessError: "),
        (Misfit("spills 8 bytes of a thread"), "spills 8 bytes of a thread"),
    ],
)
def test_a_kernel_that_does_not_run_is_told(error, words):
    told = _trial.failure(stand_in({STREAM: error}), STREAM)
    assert told.startswith(words) and "\n" not in told


def test_what_every_cut_lacks_is_said_once_and_of_every_kernel_alike(monkeypatch):
    """Triton calls a C compiler, which slim containers have not."""
    monkeypatch.setattr(_trial, "_about", lambda _: {"device": "some GPU"})
    lacking = {tile: RuntimeError("Failed to find C compiler.") for tile in cuts()}
    told = set()
    for name in ("a kernel", "another"):
        with pytest.raises(NoCut) as error:
            _trial.fastest(stand_in(lacking, name), cuts(), torch.device("cuda:0"))
        told.add(str(error.value))
    assert told == {
        "its kernels have one problem, however they are cut: does not run: RuntimeError: Failed to "
        "find C compiler."
    }


def test_a_full_gpu_is_not_the_kernels_fault():
    with pytest.raises(torch.OutOfMemoryError):
        _trial.failure(stand_in({STREAM: torch.OutOfMemoryError()}), STREAM)


def usage(**changes):
    facts = {"own": 16 << 10, "counters": 21 << 10, "registers": 255, "spilled": 0, "threads": 256}
    return Usage(**(facts | changes))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, None),
        ({"own": 28 << 10}, "asks for none"),  # as Triton 3.8 makes of tf32x3 for sm_80
        ({"own": 28 << 10, "counters": 0}, None),
        ({"own": 64 << 10}, None),
        ({"own": 90 << 10}, "of shared memory of 101376"),
        ({"threads": 512}, "255 registers in each of 512 threads"),
        ({"spilled": 24}, "spills 24 bytes"),
    ],
)
def test_what_a_device_cannot_start_or_would_spill_is_told(changes, words):
    problem = usage(**changes).problem(Limits(99 << 10, 65536))
    assert words in problem if words else problem is None


def test_what_a_kernel_takes_is_read_from_the_loaded_kernel():
    loaded = []
    built = SimpleNamespace(
        _init_handles=lambda: loaded.append(True),
        metadata=SimpleNamespace(shared=9000),
        n_regs=40,
        n_spills=3,
    )
    found = Usage.of(built, replace(STREAM, counter="shared"))
    assert found == Usage(9000, (20 << 10) + 1024, 40, 12, 256) and loaded
    assert Usage.of(built, STREAM).counters == 0


@pytest.mark.parametrize("own, problem", [(16 << 10, None), (28 << 10, "asks for none")])
def test_a_trial_looks_at_a_kernel_before_its_first_launch_only(own, problem, monkeypatch):
    """Later launches are timed."""
    seen = []

    class Kernel:
        def warmup(self, *arguments, grid, **constants):
            seen.append("looked at")
            metadata = SimpleNamespace(shared=own)
            return SimpleNamespace(
                _init_handles=lambda: None, metadata=metadata, n_regs=64, n_spills=0
            )

        def __getitem__(self, grid):
            return lambda *arguments, **constants: seen.append("launched")

    monkeypatch.setattr(_triton(), "INTERPRETED", False)
    monkeypatch.setattr(Limits, "of", lambda _: Limits(99 << 10, 65536))
    monkeypatch.setattr(_triton().kernels, "histogram_kernel", Kernel())
    run = _triton().Accumulator(FloatAxis(), CPU, strict=True)
    cut = replace(STREAM, counter="shared")
    if problem:
        with pytest.raises(Misfit, match=problem):
            run.add(torch.zeros(5), cut=cut)
    else:
        run.add(torch.zeros(5), cut=cut)
        run.add(torch.zeros(5), cut=cut)
    assert seen == (["looked at"] if problem else ["looked at", "launched", "launched"])


# What is chosen


def stand_in(outcomes, name="a kernel"):
    """A variant whose cuts find the right thing, or a wrong one (False), or raise."""
    right = histogram(torch.ones(5), backend="reference")
    wrong = histogram(torch.ones(4), backend="reference")

    def run(tile, draw, timed=False, programs=None):
        outcome = outcomes.get(tile, True)
        if isinstance(outcome, Exception):
            raise outcome
        return SimpleNamespace(collect=lambda: right if outcome else wrong)

    return Variant(name, run, lambda draw: right)


def cuts():
    return [replace(STREAM, counter=counter, m=m) for counter in COUNTERS for m in (8, 4, 2)]


@pytest.fixture
def timed(monkeypatch):
    """Times by counter, bursty and constant, and what was timed."""
    seen = []
    times = {"shared": (1.0, 9.0), "registers": (3.0, 3.0), "scratch": (2.0, 5.0)}

    def time(variant, tile):
        seen.append(tile)
        return Trial(str(tile), None, *times[tile.counter])

    monkeypatch.setattr(_trial, "_time", time)
    monkeypatch.setattr(_trial, "_about", lambda device: {"device": f"a GPU ({device})"})
    return SimpleNamespace(seen=seen, times=times)


def test_the_counter_that_is_fastest_on_both_kinds_of_data_is_taken(timed):
    taken = _trial.fastest(stand_in({}), cuts(), GPU)
    assert taken.counter == "registers"
    assert [(tile.counter, tile.m) for tile in timed.seen] == [(one, 8) for one in COUNTERS]
    timed.times["scratch"] = (1.0, 1.0)
    assert _trial.fastest(stand_in({}, "another"), cuts(), GPU).counter == "scratch"


def test_cuts_that_do_not_serve_are_passed_over_and_all_is_recorded(timed):
    wrong = {cuts()[0]: Misfit("spills 8 bytes"), cuts()[3]: False, cuts()[4]: False}
    assert _trial.fastest(stand_in(wrong | {cuts()[5]: False}), cuts(), GPU).counter == "scratch"
    assert [(tile.counter, tile.m) for tile in timed.seen] == [("shared", 4), ("scratch", 8)]
    (record,) = kernels.kernel_trials()
    assert record["taken"] == str(cuts()[6])
    assert record["tried"] == [
        {"cut": str(cuts()[0]), "problem": "spills 8 bytes"},
        {"cut": str(cuts()[1]), "bursty_ms": 1.0, "constant_ms": 9.0},
        *({"cut": str(cut), "problem": "counts wrongly"} for cut in cuts()[3:6]),
        {"cut": str(cuts()[6]), "bursty_ms": 2.0, "constant_ms": 5.0},
    ]
    json.dumps(record)


def test_a_choice_is_remembered_by_the_process_and_by_the_next(timed, monkeypatch):
    for _ in range(2):
        _trial.fastest(stand_in({}), cuts(), GPU)
    assert len(timed.seen) == 3
    known = kernels.kernel_trials()
    monkeypatch.setattr(_trial, "_chosen", {})
    assert _trial.fastest(stand_in({}), cuts(), GPU).counter == "registers"
    assert len(timed.seen) == 3 and kernels.kernel_trials() == known
    _trial.fastest(stand_in({}), cuts(), torch.device("cuda:1"))  # another GPU
    assert len(timed.seen) == 6


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"tile": {"m": 3, "split": [1]}}'])
def test_a_damaged_file_means_a_new_trial(text, timed, monkeypatch, tmp_path):
    _trial.fastest(stand_in({}), cuts(), GPU)
    (file,) = (tmp_path / "kernels").iterdir()
    file.write_text(text)
    monkeypatch.setattr(_trial, "_chosen", {})
    assert _trial.fastest(stand_in({}), cuts(), GPU).counter == "registers"
    assert len(timed.seen) == 6


def test_a_choice_that_is_no_candidate_any_more_means_a_new_trial(timed, monkeypatch):
    _trial.fastest(stand_in({}), cuts(), GPU)
    monkeypatch.setattr(_trial, "_chosen", {})
    fewer = [cut for cut in cuts() if cut.counter != "registers"]
    assert _trial.fastest(stand_in({}), fewer, GPU).counter == "scratch"


def test_a_home_that_cannot_be_written_costs_a_trial_a_process(timed, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BURST_CACHE", str(tmp_path / "file"))
    assert _trial.fastest(stand_in({}), cuts(), GPU).counter == "registers"


def test_no_home_at_all_costs_a_trial_a_process(timed, no_home):
    assert _trial.fastest(stand_in({}), cuts(), GPU).counter == "registers"


def test_without_room_for_times_the_first_right_counter_is_taken(timed, monkeypatch):
    monkeypatch.setattr(_trial, "_time", lambda variant, tile: Trial(str(tile)))
    assert _trial.fastest(stand_in({cuts()[0]: False}), cuts(), GPU) == cuts()[1]
    monkeypatch.setattr(_trial, "_chosen", {})
    _trial.fastest(stand_in({}), cuts(), GPU)
    assert kernels.kernel_trials()[0]["taken"] == str(cuts()[0])  # it was not written down


def test_no_right_cut_says_how_each_fared(timed):
    all_wrong = dict.fromkeys(cuts(), False)
    for _ in range(2):
        with pytest.raises(NoCut, match=r"a kernel is right.*report.*tile 8 x 1024.*wrongly"):
            _trial.fastest(stand_in(all_wrong), cuts(), GPU)


# What "auto" does


@pytest.mark.parametrize(
    "fact, words",
    [
        ((_trial, "installed", lambda: False), "pip install triton"),
        ((torch.version, "hip", "6.0"), "AMD"),
        ((torch.cuda, "get_device_capability", lambda _: (7, 0)), "capability is 7.0"),
    ],
)
def test_what_keeps_triton_from_a_gpu_is_told(fact, words, new_gpu, monkeypatch):
    assert _trial.obstacle(GPU) is None
    monkeypatch.setattr(*fact)
    assert words in _trial.obstacle(GPU)


def test_a_triton_that_cannot_be_imported_is_an_obstacle(new_gpu, monkeypatch):
    monkeypatch.delattr(kernels, "_triton")
    monkeypatch.setitem(sys.modules, "burst.kernels._triton", None)
    assert _trial.obstacle(GPU).startswith("Triton cannot be imported: ModuleNotFoundError: ")


def test_what_triton_cannot_build_with_is_an_obstacle_and_asked_for_once(monkeypatch):
    """Without Python.h each kernel would fail, with a page of a compiler's errors each time."""
    asked = []

    class Driver:
        @property
        def active(self):
            asked.append(self)
            raise subprocess.CalledProcessError(1, ["gcc", "main.c"])

    runtime = pytest.importorskip("triton.runtime", reason="Triton is not installed")
    monkeypatch.setattr(runtime, "driver", Driver())
    _trial._no_launcher.cache_clear()
    try:
        told = {_trial._no_launcher() for _ in range(2)}
    finally:
        _trial._no_launcher.cache_clear()
    (one,) = told
    assert "(gcc and python3-dev): CalledProcessError: Command" in one and len(asked) == 1


def test_a_gpu_does_not_get_interpreted_kernels(new_gpu, monkeypatch):
    monkeypatch.setattr(_triton(), "INTERPRETED", True)
    assert "unset TRITON_INTERPRET" in _trial.obstacle(GPU)


def test_a_gpu_without_triton_means_torch_and_one_warning(new_gpu, monkeypatch):
    monkeypatch.setattr(_trial, "installed", lambda: False)
    with pytest.warns(BackendWarning, match=r"cuda:0.*pip install.*backend='torch'") as all_:
        for _ in range(2):
            assert not trusted("auto", GPU, FloatAxis())
    assert len(all_) == 1


def test_an_axis_that_triton_cannot_bin_is_left_to_torch(new_gpu):
    assert trusted("auto", GPU, FloatAxis())
    assert not trusted("auto", GPU, RegularAxis(4, -1e300, 1e300))


def test_a_variant_without_a_right_cut_is_counted_by_torch_with_one_warning(device, monkeypatch):
    def refuse(x, axis):
        if isinstance(axis, RegularAxis):
            raise NoCut("no cut of its kernel is right")
        return STREAM

    monkeypatch.setattr(_triton(), "_stream_tile", refuse)
    monkeypatch.setattr(accumulator, "choose", lambda *_, **__: "triton")
    x, axis = torch.randn(50, device=device), RegularAxis(4, -1.0, 1.0)
    with pytest.warns(BackendWarning, match="no cut of its kernel is right; give") as all_:
        for _ in range(2):
            hist = histogram(x, axis)
            assert hist.backend == "torch"
            assert hist == reference.histogram(x.cpu(), axis)
    assert len(all_) == 1
    assert histogram(x).backend == "triton"  # another variant is not refused
    with pytest.raises(NoCut):
        histogram(x, axis, backend="triton")


def test_the_processor_has_no_trial(monkeypatch):
    monkeypatch.setattr(_trial, "fastest", lambda *_: pytest.fail("tried"))
    for hist in (histogram(torch.ones(3)), matmul_histogram(torch.ones(2, 2), torch.ones(2, 2))):
        assert hist.backend == "torch"


def test_a_name_is_obeyed(monkeypatch):
    monkeypatch.setattr(_trial, "obstacle", lambda *_: pytest.fail("asked"))
    for name in kernels.BACKENDS:
        assert not trusted(name, GPU, FloatAxis())
        assert choose(name, GPU, installed=True) == name
    with pytest.raises(BackendError, match="pip install triton"):
        choose("triton", GPU, installed=False)


def test_trust_is_for_gpus_with_triton():
    assert choose("auto", GPU, installed=True, trusted=True) == "triton"
    assert choose("auto", GPU, installed=True, trusted=False) == "torch"
    assert choose("auto", GPU, installed=False, trusted=True) == "torch"
    assert choose("auto", CPU, installed=True, trusted=True) == "torch"


def test_every_axis_has_counters_and_wide_ones_only_those_in_memory():
    assert counters_for(FloatAxis()) == COUNTERS == counters_for(RegularAxis(256, 0, 1))
    assert counters_for(RegularAxis(4000, 0, 1)) == ("shared", "scratch")
    assert counters_for(RegularAxis(20_000, 0, 1)) == ("scratch",)
    assert counters_for(FloatAxis(10)) == ("shared", "scratch")  # an octave a sign in registers


def test_a_survey_counts_with_triton_what_it_counts_with_torch(device):
    """On a GPU "auto" is Triton; in the interpreter it has to be named."""
    backbone = backbone_of(vit(num_heads=2).to(device))
    images = images_for(backbone, "sample", num_images=2)
    fast = "auto" if device.type == "cuda" else "triton"
    found, known = (
        survey(backbone, images, SurveyOptions(blocks=(1,), per_head=True, backend=backend))
        for backend in (fast, "torch")
    )
    assert (found.record["backend"], known.record["backend"]) == (["triton"], ["torch"])
    assert (found.record["precision"], known.record["precision"]) == (["tf32x3"], ["ieee"])
    for key, hist in found.histograms.items():
        assert hist.count == known.histograms[key].count
        if key[2] != "qkx":  # products may differ in their last bit
            assert hist == known.histograms[key]
        assert hist.moments.std == pytest.approx(known.histograms[key].moments.std, rel=1e-5)


@pytest.mark.gpu
def test_auto_on_a_gpu_is_triton_and_says_nothing(device):
    if device.type != "cuda":
        pytest.skip("no GPU is here")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = torch.randn(300, 64, device=device)
        assert histogram(x).backend == "triton"
        for precision in kernels.PRECISIONS:
            hist = matmul_histogram(x[:64], x.mT, precision=precision)
            assert (hist.backend, hist.precision) == ("triton", precision)
            assert any(hist.kernel == one["taken"] for one in kernels.kernel_trials())
