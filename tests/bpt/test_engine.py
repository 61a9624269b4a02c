"""An epoch and an evaluation, against loops written out."""

import math
import time

import numpy as np
import pytest
import torch
from support import SIZE, backbone_of, vit
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from bpt import NonFiniteLoss, PlainPrompt, PromptedViT, evaluate
from bpt.engine import ClassifierTrainer, standard_error
from burst import EmptyResult, UnknownName

CPU = torch.device("cpu")


def model_of(seed=0):
    backbone = backbone_of(vit())
    generator = torch.Generator().manual_seed(seed)
    prompt = PlainPrompt(torch.randn(3, 32, generator=generator))
    return PromptedViT(backbone, {1: prompt}, 4, generator=generator)


def batches_of(count, size=6):
    generator = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(size, 3, SIZE, SIZE, generator=generator),
            torch.randint(4, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def trainer_of(model, **options):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    settings = {"prompts": [model.prompts["1"].values], "set_lr": lambda _: None, "device": CPU}
    return ClassifierTrainer(model, model, optimizer, **settings | options)


def run(trainer, batches):
    done = trainer.start()
    return trainer.train_epoch(batches, first_step=0, done=done, after_step=lambda _: None)


def test_an_epoch_is_what_a_plain_loop_does():
    batches = batches_of(4)
    mine, theirs = model_of(), model_of()
    done = run(trainer_of(mine), batches)
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=0.1)
    losses, correct, norms = [], 0, []
    for images, labels in batches:
        logits = theirs(images)
        loss = functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(theirs.prompts["1"].values.grad.norm()))
        optimizer.step()
        losses.append(loss.item() * len(labels))
        correct += int((logits.argmax(1) == labels).sum())
    assert done.sums.tolist() == pytest.approx([sum(losses), correct, 24, sum(norms)], rel=1e-6)
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_a_step_in_parts_is_the_whole_step(parts):
    batches, whole, cut = batches_of(3), model_of(), model_of()
    one, other = run(trainer_of(whole), batches), run(trainer_of(cut, accumulation=parts), batches)
    assert torch.allclose(one.sums, other.sums, rtol=1e-4)  # another order of summation
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def test_a_smoothed_loss_and_that_of_mixed_answers_are_timms():
    (images, labels), model = batches_of(1)[0], model_of()
    logits = model(images).detach()
    smoothed, counts = trainer_of(model, label_smoothing=0.1).loss((images, labels))
    torch.testing.assert_close(smoothed.detach(), LabelSmoothingCrossEntropy(0.1)(logits, labels))
    assert counts[0] == pytest.approx(6 * smoothed.item())
    shares = 0.7 * functional.one_hot(labels, 4) + 0.3 * functional.one_hot(labels.flip(0), 4)
    mixed, counts = trainer_of(model).loss((images, shares))
    torch.testing.assert_close(mixed.detach(), SoftTargetCrossEntropy()(logits, shares))
    assert counts[1] == (logits.argmax(1) == labels).sum()  # of the answer with the larger share


def test_only_prompts_and_head_move():
    model = model_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(trainer_of(model), batches_of(2))
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert moved == {"prompts.1.values", "head.weight", "head.bias"}


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_trains_float32_tensors_to_about_the_same_loss(precision):
    batches = batches_of(1)  # float16's scaler skips the first steps until it has found its scale
    model = model_of()
    done = run(trainer_of(model, precision=precision), batches)
    exact = run(trainer_of(model_of()), batches)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert float(done.sums[0]) == pytest.approx(float(exact.sums[0]), rel=0.02)


@pytest.mark.parametrize("right, images", [(0, 5), (3, 7), (50, 50), (123, 1000)])
def test_the_standard_error_is_that_of_a_mean_of_zeros_and_ones(right, images):
    values = np.repeat([1.0, 0.0], [right, images - right])
    expected = 100 * values.std() / np.sqrt(images)
    assert standard_error(100 * right / images, images) == pytest.approx(expected)


def test_a_loss_that_is_not_finite_stops_and_says_what_to_change():
    model = model_of()
    images, labels = batches_of(1)[0]
    with pytest.raises(NonFiniteLoss, match=r"Lower lr.*precision float32"):
        run(trainer_of(model), [(images * math.inf, labels)])


def test_a_trainer_goes_on_from_its_state_bit_for_bit():
    batches = batches_of(6)
    whole, half, rest = model_of(), model_of(), model_of(seed=9)
    rest.load_state_dict(model_of().state_dict())
    run(trainer_of(whole), batches)
    first = trainer_of(half)
    run(first, batches[:3])
    second = trainer_of(rest)
    second.load(first.state())
    run(second, batches[3:])
    for a, b in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(a, b)


class Device(TorchFunctionMode):
    """Notes what makes a tensor on another device of numbers that are here."""

    def __init__(self):
        super().__init__()
        self.copied = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.as_tensor) and made.device.type != "cpu":
            self.copied.append(args[0])
        return made


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_step_neither_reads_a_number_from_the_device_nor_sends_one(accumulation):
    meta = torch.device("meta")  # of a tensor there nothing can be read: that raises
    model = model_of().to(meta)
    trainer = trainer_of(model, device=meta, accumulation=accumulation)
    images, labels = (part.to(meta) for part in batches_of(1)[0])
    with Device() as device:
        sums = trainer.step((images, labels))
    assert device.copied == [] and sums.device == meta


def test_the_time_of_an_epoch_has_what_a_gpu_does_after_its_last_step(monkeypatch):
    """Steps are only put into its queue; the look at the losses waits for them."""

    trainer = trainer_of(model_of())
    waited = []

    def wait(*_):
        waited.append(time.perf_counter())
        time.sleep(0.05)

    monkeypatch.setattr(trainer, "check", wait)
    monkeypatch.setattr(trainer, "step", lambda _: torch.zeros(4))
    done = trainer.start()
    trainer.device = torch.device("cuda:0")  # where losses are looked at now and then
    trainer.train_epoch([None] * 3, first_step=0, done=done, after_step=lambda _: None)
    assert done.step == 3 and len(waited) == 1 and done.seconds >= 0.05


def test_an_evaluation_is_the_mean_over_images_whatever_the_batches():
    model = model_of().eval()
    parts, first = batches_of(2) + batches_of(1, size=2), [0, 6, 12]
    batches = [
        (*part, start + torch.arange(len(part[1])))
        for part, start in zip(parts, first, strict=True)
    ]
    found = evaluate(model, batches, device=CPU)
    logits = torch.cat([model(images) for images, _, _ in batches]).detach().double()
    labels = torch.cat([labels for _, labels, _ in batches])
    assert found.images == 14
    assert found.loss == pytest.approx(float(functional.cross_entropy(logits, labels)), rel=1e-5)
    assert found.accuracy == pytest.approx(
        100 * float((logits.argmax(1) == labels).double().mean())
    )


def test_nothing_to_evaluate_is_said():
    with pytest.raises(EmptyResult):
        evaluate(model_of(), [], device="cpu")
    with pytest.raises(UnknownName, match="float16"):
        evaluate(model_of(), [], device="cpu", precision="fp16")
