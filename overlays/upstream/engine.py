"""Upstream's train() as an engine: shadows, swaps, what still fits, and the call that drives it.

train() looks up by name, in its own module and while it runs, everything it calls. Each of these names is replaced
there, for the time of the call, by the object that the native engine uses (a method of `overlays.train.run.Run`).
transformers, torch and peft stay as they are for everybody else.
"""

import contextlib
import copy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace

from overlays import runs
from overlays.errors import UserError
from overlays.upstream import tree as upstream_tree
from overlays.upstream.tree import commit

# ---- what is replaced


@dataclass(frozen=True)
class Target:
    """One name of upstream's that the overlay replaces. `name` is dotted, as train() looks it up."""

    kind: str  # "shadow": a module that is imported in its place; "register": a table added to; "swap": a name
    name: str
    becomes: str


TARGETS = (
    Target("shadow", "trainer", "a module without flash-attn and without patches to transformers"),
    Target("register", "qwenvl.data.data_dict", "also the names of overlays.registry"),
    Target("swap", "ModelArguments", "overlays.train.arguments.ModelArguments"),
    Target("swap", "DataArguments", "overlays.train.arguments.DataArguments"),
    Target("swap", "TrainingArguments", "overlays.train.arguments.TrainingArguments"),
    Target("swap", "transformers.HfArgumentParser", "the flags that overlays.train.arguments parsed"),
    Target("swap", "Qwen2VLForConditionalGeneration", "overlays.train.run.Run.load_model"),
    Target("swap", "Qwen2_5_VLForConditionalGeneration", "overlays.train.run.Run.load_model"),
    Target("swap", "Qwen3VLForConditionalGeneration", "overlays.train.run.Run.load_model"),
    Target("swap", "Qwen3VLMoeForConditionalGeneration", "overlays.train.run.Run.load_model"),
    Target("swap", "AutoProcessor", "overlays.train.run.Run.processor, saved by our Trainer"),
    Target("swap", "transformers.AutoTokenizer", "overlays.train.run.Run.processor"),
    Target("swap", "set_model", "overlays.train.run.Run.set_parts"),
    Target("swap", "torch.distributed.get_rank", "no rank prints upstream's lists; Run prints the parts table"),
    Target("swap", "make_supervised_data_module", "overlays.train.run.Run.data_module"),
    Target("swap", "Trainer", "overlays.train.run.Run.build_trainer"),
    Target("swap", "safe_save_model_for_hf_trainer", "overlays.train.run.Run.finish"),
)


def shadows() -> dict[str, ModuleType]:
    """What upstream finds under the bare name `trainer`.

    Its own file needs flash-attn at import and patches transformers; attention inside samples of a concatenated row
    needs neither (see FlattenedCollator).
    """
    module = ModuleType("trainer", "Stands in for upstream's trainer.py.")
    module.replace_qwen2_vl_attention_class = lambda: None
    return {module.__name__: module}


@dataclass(frozen=True)
class Fit:
    """Whether a target is still there. `problem` is a clause about it, empty where it fits."""

    target: Target
    problem: str = ""


def check(tree: Path, flags: Mapping[str, type]) -> tuple[ModuleType | None, list[Fit]]:
    """(train_qwen or None where it does not import, one row for each target and for each name nobody knows).

    Args:
        flags: the overlay's classes of flags, by the name of the class of upstream's that each takes the place of.
    """
    try:
        module = upstream_tree.load(tree, shadows())
    except Exception as error:
        reason = f"the import fails: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
        return None, [Fit(target, reason) for target in TARGETS]
    return module, [Fit(target, _problem(module, target, flags)) for target in TARGETS] + _unknown(module)


def _problem(module: ModuleType, target: Target, flags: Mapping[str, type]) -> str:
    if target.kind == "register":
        table = getattr(sys.modules.get("qwenvl.data"), "data_dict", None)
        return "" if isinstance(table, dict) else "is gone"
    if target.kind == "shadow":
        used = getattr(module, "replace_qwen2_vl_attention_class", None)
        return "" if used is not None else "train_qwen.py no longer imports it"
    if not isinstance(getattr(module, "train", None), FunctionType):
        return "there is no function train()"
    first, *rest = target.name.split(".")
    looked_up = module.train.__code__.co_names
    if not rest and first not in vars(module):
        return "is gone"
    if not all(word in looked_up for word in (first, *rest)):
        return "train() no longer looks it up"
    if target.name.endswith("Arguments"):
        return _missing_flags(getattr(module, first), flags[target.name])
    return ""


def _missing_flags(theirs: type, ours: type) -> str:
    gone = theirs.__dataclass_fields__.keys() - ours.__dataclass_fields__.keys()
    return f"has flags that overlays.train.arguments lacks: {', '.join(sorted(gone))}" if gone else ""


def _unknown(module: ModuleType) -> list[Fit]:
    """Functions of upstream's and model classes that train() uses and no target replaces."""
    import transformers

    if not isinstance(getattr(module, "train", None), FunctionType):
        return []
    replaced = {target.name.split(".")[0] for target in TARGETS} | {"train", "replace_qwen2_vl_attention_class"}
    rows = []
    for name in module.train.__code__.co_names:
        value = vars(module).get(name)
        is_function = callable(value) and str(getattr(value, "__module__", "")).split(".")[0] == "qwenvl"
        is_model = isinstance(value, type) and issubclass(value, transformers.PreTrainedModel)
        if name not in replaced and (is_function or is_model):
            rows.append(Fit(Target("swap", name, "-"), "train() uses it, and the overlay does not know it"))
    return rows


def drift(tree: Path, rows: list[Fit]) -> str | None:
    """The sentence about the first target that does not fit; None where all do."""
    broken = [row for row in rows if row.problem]
    if not broken:
        return None
    more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
    return (f"the upstream tree {tree} at {commit(tree)[:12]} has drifted: {broken[0].target.name}: "
            f"{broken[0].problem}{more}; python -m overlays.upstream --check lists all")


# ---- the engine


@dataclass(frozen=True)
class Engine:
    """Who drives a run. `module` is upstream's train_qwen, None for the native engine."""

    name: str
    commit: str | None
    line: str  # printed at start
    module: ModuleType | None = None
    warning: str | None = None


def choose(wanted: str, flags: Mapping[str, type], root: Path = upstream_tree.ROOT) -> Engine:
    """The engine for `--engine auto|upstream|native`.

    Args:
        flags: as for `check`.

    Raises:
        UserError: upstream is asked for, and its tree is absent or has drifted.
    """
    current = runs.commit(root)
    native = f"engine: native at {current or 'unknown commit'}"
    if wanted == "native":
        return Engine("native", current, native)
    tree = upstream_tree.require(root) if wanted == "upstream" else upstream_tree.find(root)
    if tree is None:
        return Engine("native", current,
                      f"{native} (upstream's tree is not checked out: ./scripts/setup.sh --upstream)")
    module, rows = check(tree, flags)
    sentence = drift(tree, rows)
    if sentence is None:
        return Engine("upstream", commit(tree), f"engine: upstream at {commit(tree)} ({tree})", module)
    if wanted == "upstream":
        raise UserError(sentence)
    return Engine("native", current, native, warning=f"{sentence}; going on with the native engine")


class _Seen:
    """An object seen with some of its names replaced; every other name is its own."""

    def __init__(self, original, **names):
        vars(self).update(names, _original=original)

    def __getattr__(self, name):
        return getattr(self._original, name)


def swaps(run) -> dict[str, object]:
    """What takes the place of each swap target, by its dotted name.

    Args:
        run: an `overlays.train.run.Run`.
    """
    # In upstream's LoRA branch a run trains its adapter and nothing else, with fixed targets (defect 1). load_model
    # has put the adapter in already, so train() is shown lora_enable False and takes the other branch, where
    # set_model decides what is trained. The copy of the data arguments takes the model_type that train() guesses.
    training = _Seen(run.training, lora_enable=False)
    flags = {type(run.model_args): run.model_args, type(run.data): copy.copy(run.data), type(run.training): training}
    model = SimpleNamespace(from_pretrained=lambda *_, **__: run.load_model())

    def trainer(model=None, **_):
        ours = run.build_trainer(model)
        # train() resumes from whatever is called checkpoint-*; where to go on has been decided already.
        ours.train = lambda resume_from_checkpoint=None: run.fit(ours)
        return ours

    return {
        **{flag_class.__name__: flag_class for flag_class in flags},
        "transformers.HfArgumentParser": lambda classes: SimpleNamespace(
            parse_args_into_dataclasses=lambda: tuple(flags[flag_class] for flag_class in classes)
        ),
        **{target.name: model for target in TARGETS if target.name.endswith("ForConditionalGeneration")},
        # Every rank calls save_pretrained at the end; our Trainer has saved the processor by then, once.
        "AutoProcessor": SimpleNamespace(
            from_pretrained=lambda *_, **__: SimpleNamespace(save_pretrained=lambda *_, **__: None)
        ),
        "transformers.AutoTokenizer": SimpleNamespace(from_pretrained=lambda *_, **__: run.processor),
        "set_model": lambda model_args, model: run.set_parts(model),
        "torch.distributed.get_rank": lambda: -1,
        "make_supervised_data_module": lambda *_, **__: run.data_module(),
        "Trainer": trainer,
        "safe_save_model_for_hf_trainer": lambda trainer, output_dir: run.finish(trainer),
    }


def replace(module: ModuleType, values: dict[str, object]) -> dict[str, object]:
    """Put `values` (by dotted name) into the module's namespace; returns what stood there before."""
    before, names = {}, vars(module)
    for dotted, value in values.items():
        first, *rest = dotted.split(".")
        before.setdefault(first, names[first])
        names[first] = _with(names[first], rest, value)
    return before


def _with(original, path: list[str], value):
    """`original` seen with the attribute at `path` replaced."""
    if not path:
        return value
    inner = _with(getattr(original, path[0]), path[1:], value)
    if isinstance(original, _Seen):
        vars(original)[path[0]] = inner
        return original
    return _Seen(original, **{path[0]: inner})


def register(sets) -> None:
    """Add data sets (`registry.Dataset`) to upstream's data_dict, under their names."""
    table = sys.modules["qwenvl.data"].data_dict
    for item in sets:
        table[item.name] = {"annotation_path": str(item.annotation), "data_path": str(item.media_root)}


def drive(module: ModuleType, run, sets) -> None:
    """Let upstream's train() do the run; it finds `sets` (`registry.Dataset`) by name."""
    register(sets)
    output = Path(run.training.output_dir)
    existed = output.exists()
    before = replace(module, swaps(run))
    try:
        module.train(attn_implementation=run.model_args.attn_implementation)
    except BaseException:
        if not existed:
            with contextlib.suppress(OSError):
                output.rmdir()  # train() makes it before the model is loaded; only an empty folder goes
        raise
    finally:
        vars(module).update(before)


# ---- what --check prints


def report(tree: Path, rows: list[Fit]) -> str:
    """The table of `--check`."""
    lines = [f"upstream tree {tree} at {commit(tree)}"]
    width = max(len(row.target.name) for row in rows)
    for row in rows:
        fits = f"NO: {row.problem}" if row.problem else "yes"
        lines.append(f"{row.target.kind:<10}{row.target.name:<{width + 2}}{fits:<5}{row.target.becomes}")
    broken = sum(bool(row.problem) for row in rows)
    lines.append(f"{len(rows) - broken} of {len(rows)} fit")
    return "\n".join(lines)
