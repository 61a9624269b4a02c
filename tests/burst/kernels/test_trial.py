"""What "auto" means on a GPU: Triton after a trial that it passed, torch with one warning else.

The trial itself runs under Triton's interpreter; a GPU is stood for by its name.
"""

import subprocess
import warnings

import pytest
import torch
from support import backbone_of, vit

from burst import kernels
from burst.axis import FloatAxis, RegularAxis
from burst.errors import BackendError, BackendWarning
from burst.histogram import Histogram
from burst.kernels import _trial, choose, histogram, matmul_histogram
from burst.survey import SurveyOptions, images_for, survey

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
KERNELS = [_trial.STREAM, *kernels.PRECISIONS]


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch):
    monkeypatch.setattr(_trial, "_passed", set())
    monkeypatch.setattr(_trial, "_refused", {})


@pytest.fixture
def new_gpu(monkeypatch):
    """A GPU that Triton can be used on, as far as one can tell without running anything."""
    monkeypatch.setattr(_trial, "installed", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(_triton(), "INTERPRETED", False)


def _triton():
    pytest.importorskip("triton", reason="Triton is not installed")
    from burst.kernels import _triton

    return _triton


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernels_pass_their_trial(kernel, device):
    before = torch.get_rng_state()
    assert _trial.failure(device, kernel) is None
    assert torch.equal(torch.get_rng_state(), before)


def lie_about(what, monkeypatch):
    """Make both launchers return nearly what they found."""
    for name in ("histogram", "matmul_histogram"):
        honest = getattr(_triton(), name)

        def lie(*arguments, honest=honest, **options):
            form = honest(*arguments, **options).to_dict()
            if what == "counts":
                place = form["counts"].index(max(form["counts"]))
                form["counts"][place] -= 1
                form["counts"][place + 1] += 1
            else:
                form["moments"][2] *= 1.001
            return Histogram.from_dict(form)

        monkeypatch.setattr(_triton(), name, lie)


@pytest.mark.parametrize("what", ["counts", "moments"])
@pytest.mark.parametrize("kernel", [_trial.STREAM, "tf32x3"])
def test_a_kernel_that_lies_is_found_out(what, kernel, device, monkeypatch):
    lie_about(what, monkeypatch)
    assert f"its {kernel} kernel counts wrongly on FloatAxis" in _trial.failure(device, kernel)


@pytest.mark.parametrize(
    "error", [RuntimeError("PTXAS error\nlong story"), subprocess.CalledProcessError(1, ["cc"])]
)
def test_a_kernel_that_does_not_compile_is_told(error, device, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(_triton(), "histogram", fail)
    told = _trial.failure(device, _trial.STREAM)
    assert told.startswith(f"its histogram kernel does not run: {type(error).__name__}: ")
    assert "\n" not in told


def test_a_full_gpu_is_not_the_kernels_fault(device, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(_triton(), "histogram", fail)
    with pytest.raises(torch.OutOfMemoryError):
        _trial.failure(device, _trial.STREAM)


@pytest.mark.parametrize(
    "fact, words",
    [
        ((_trial, "installed", lambda: False), "pip install triton"),
        ((torch.version, "hip", "6.0"), "AMD"),
        ((torch.cuda, "get_device_capability", lambda _: (7, 5)), "capability is 7.5"),
    ],
)
def test_what_keeps_triton_from_a_gpu_is_told(fact, words, new_gpu, monkeypatch):
    assert _trial.obstacle(GPU) is None
    monkeypatch.setattr(*fact)
    assert words in _trial.obstacle(GPU)


def test_a_gpu_does_not_get_interpreted_kernels(new_gpu, monkeypatch):
    monkeypatch.setattr(_triton(), "INTERPRETED", True)
    assert "unset TRITON_INTERPRET" in _trial.obstacle(GPU)


def test_each_kernel_is_tried_once_on_each_gpu(new_gpu, monkeypatch):
    tried = []
    monkeypatch.setattr(_trial, "failure", lambda *what: tried.append(what))
    other = torch.device("cuda:1")
    for device in (GPU, other, GPU):
        for kernel in ("tf32x3", _trial.STREAM, "tf32x3"):
            assert kernels._pick("auto", device, FloatAxis(), kernel) == "triton"
    assert tried == [(one, kernel) for one in (GPU, other) for kernel in ("tf32x3", "histogram")]


def test_a_failed_trial_means_torch_and_one_warning(new_gpu, monkeypatch):
    monkeypatch.setattr(_trial, "failure", lambda *_: "its kernel counts wrongly")
    with pytest.warns(
        BackendWarning, match=r"cuda:0.*counts wrongly; give backend='torch'"
    ) as all_:
        for kernel in KERNELS:
            assert kernels._pick("auto", GPU, FloatAxis(), kernel) == "torch"
    assert len(all_) == 1


def test_a_name_is_obeyed_without_a_trial(monkeypatch):
    monkeypatch.setattr(_trial, "passes", lambda *_: pytest.fail("tried"))
    monkeypatch.setattr(_trial, "installed", lambda: True)
    for name in kernels.BACKENDS:
        assert kernels._pick(name, GPU, FloatAxis(), "ieee") == name
    monkeypatch.setattr(_trial, "installed", lambda: False)
    with pytest.raises(BackendError, match="pip install triton"):
        kernels._pick("triton", GPU, FloatAxis(), "ieee")


def test_the_processor_has_no_trial(monkeypatch):
    monkeypatch.setattr(_trial, "passes", lambda *_: pytest.fail("tried"))
    for hist in (histogram(torch.ones(3)), matmul_histogram(torch.ones(2, 2), torch.ones(2, 2))):
        assert hist.backend == "torch"


def test_an_axis_that_triton_cannot_bin_is_left_to_torch(new_gpu, monkeypatch):
    monkeypatch.setattr(_trial, "failure", lambda *_: None)
    assert kernels._pick("auto", GPU, RegularAxis(4, -1e300, 1e300), "ieee") == "torch"


def test_trust_is_for_gpus_with_triton():
    assert choose("auto", GPU, installed=True, trusted=True) == "triton"
    assert choose("auto", GPU, installed=True, trusted=False) == "torch"
    assert choose("auto", GPU, installed=False, trusted=True) == "torch"
    assert choose("auto", CPU, installed=True, trusted=True) == "torch"


def test_a_survey_counts_with_triton_what_it_counts_with_torch(device):
    """On a GPU "auto" is Triton; in the interpreter it has to be named."""
    backbone = backbone_of(vit().to(device))
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
