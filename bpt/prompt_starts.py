"""What prompts start from, out of the training images: whitening matrices and real tokens."""

from pathlib import Path

from torch import Tensor

from bpt import run_folder as folder
from bpt.construction import prompted_blocks
from bpt.dataset import Split
from bpt.dataset_images import image_stream
from bpt.prompt_matrices import prompt_matrices, prompt_whitening
from bpt.tokens import prompt_tokens
from bpt.tuning import Tuning
from burst.backbone import Backbone
from burst.distributed import agreed, rank_and_size
from burst.errors import CheckpointError
from burst.progress import Say
from burst.whitening import Whitening, whiten
from burst.whitening_file import load_whitening, save_whitening


def prompt_starts(
    recipe: Tuning,
    backbone: Backbone,
    train: Split,
    digest: str,
    *,
    out: Path,
    say: Say,
) -> dict[str, dict[int, Tensor]]:
    """`whitening` and `tokens` for `build_model`.

    The matrices that prompts are multiplied by are left in the run folder, as a whitening file, and
    taken from there when the training goes on.
    """
    starts: dict[str, dict[int, Tensor]] = {}
    if recipe.needs_whitening:
        # Without a configuration it is the leftover of a start that never came to be a run.
        begun = (out / folder.CONFIG).exists()
        whitening = agreed(lambda: folder.open_run(out).used_whitening(backbone) if begun else None)
        if whitening is None:
            if recipe.whitening is None:
                say("whitening matrices from training images")
            made = whitening_for(recipe, backbone, train, digest)
            if warning := size_warning(made, backbone):
                say(warning)
            whitening = prompt_whitening(made, recipe.prompt_options)
            if rank_and_size()[0] == 0:
                save_whitening(whitening, out / folder.WHITENING)
        starts["whitening"] = prompt_matrices(whitening, recipe.method)
    if recipe.method == "spt":
        say(f"prompts start from {recipe.spt_tokens} tokens of training images")
        starts["tokens"] = tokens_for(recipe, backbone, train, digest)
    return starts


def whitening_for(recipe: Tuning, backbone: Backbone, train: Split, digest: str) -> Whitening:
    """The recipe's whitening file, or else matrices made from up to 1,000 training images.

    Raises:
        CheckpointError: the file cannot be read, does not fit the backbone, or lacks a block.
    """
    if recipe.whitening is not None:
        return given_whitening(recipe, backbone)
    stream = image_stream(train, backbone, seed=recipe.seed, digest=digest)
    return whiten(backbone, stream, recipe.whitening_options(prompted_blocks(recipe, backbone)))


def given_whitening(recipe: Tuning, backbone: Backbone) -> Whitening:
    """The recipe's whitening file.

    Raises:
        CheckpointError: see `whitening_for`.
    """
    assert recipe.whitening is not None
    blocks, whitening = (
        prompted_blocks(recipe, backbone),
        load_whitening(recipe.whitening, backbone),
    )
    if lacking := sorted(set(blocks) - {one.block for one in whitening.blocks}):
        raise CheckpointError(
            f"{recipe.whitening} has no matrix for block {lacking[0]}, which gets a prompt; "
            "make it again of all blocks"
        )
    return whitening


def size_warning(whitening: Whitening, backbone: Backbone) -> str | None:
    """A line where matrices were made of images of another size than the backbone reads now.

    Nothing forbids them: they fit the weights. But tokens of other sizes have other covariances.
    """
    height, _ = backbone.image_size
    sources = whitening.record["images"]["sources"]
    sizes = {one["image_size"] for one in sources if "image_size" in one} - {height}
    if not sizes:
        return None
    return (
        f"the whitening was made of images of {', '.join(map(str, sorted(sizes)))} pixels, but "
        f"{backbone.name} reads {height} here; `burst whiten --image-size {height}` makes one"
    )


def tokens_for(recipe: Tuning, backbone: Backbone, train: Split, digest: str) -> dict[int, Tensor]:
    """Block -> (m, d) tokens of up to 1,000 training images, which spt starts from."""
    device = next(backbone.model.parameters()).device
    stream = image_stream(train, backbone, seed=recipe.seed, digest=digest)
    return prompt_tokens(
        backbone,
        (batch.to(device) for batch in stream),
        prompted_blocks(recipe, backbone),
        num_prompts=recipe.num_prompts,
        kind=recipe.spt_tokens,
        seed=recipe.seed,
    )
