"""The command line: python -m fusion check | train | evaluate | compare | migrate | demo."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import, and --help should not
    from .data.features import Features
    from .evaluation.scores import Scores
    from .training.recipe import Recipe


RECORD = "migration.npz"
"""Of a migration, in the folder of a run."""
SETTINGS: tuple[tuple[str, type, str], ...] = (
    ("epochs", int, "at most"),
    ("batch_size", int, "in each process"),
    ("optimiser", str, "adamw or sgd"),
    ("learning_rate", float, "at the start"),
    ("weight_decay", float, "of the optimiser"),
    ("schedule", str, "constant, cosine or plateau"),
    ("warm_up", int, "epochs of rising learning rate"),
    ("patience", int, "stop after so many epochs without a better validation loss"),
    ("clip", float, "largest norm of the gradient"),
    ("reconstruction_weight", float, "of the layer's own losses"),
    ("temperature", float, "of the contrastive loss (retrieval)"),
    ("unlabelled_weight", float, "of what unlabelled samples teach"),
    ("confidence", float, "least probability of a class that stands for a label"),
    ("extractor", int, "hidden width of an extractor per modality (recurrent for sequences), trained too"),
    ("hidden", int, "width of the head's hidden layer"),
    ("dropout", float, "in the head"),
    ("keep", str, "last or best weights"),
)
"""Settings of a recipe that take a value: name, type, what they are."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it went well, 2 if the user can do something about what went wrong."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"fusion {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"fusion {options.command}: interrupted.", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """Names every layer there is in the help of commands that take one, which costs the import of torch."""

    def format_help(self) -> str:
        if self.get_default("run") in (_train, _compare):
            from .layers.registry import LAYERS

            self.epilog = f"layers: {', '.join(LAYERS)}"
        return super().format_help()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fusion", description="Fuse features of several modalities."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for add in (_add_check, _add_train, _add_evaluate, _add_compare, _add_migrate, _add_demo):
        add(commands)
    return parser


def _add_check(commands: Any) -> None:
    command = commands.add_parser(
        "check",
        help="say what is in a feature file, what is wrong with it and how to mend it",
        description="Look at every array of a feature file; the exit code is 2 if it cannot be used.",
    )
    command.add_argument("features", type=Path, metavar="FEATURES", help=".npz or .safetensors file")
    command.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> None:
    from .data.check import check_file

    findings = check_file(options.features)
    for finding in findings:
        print(finding)
    wrong = sum(finding.kind == "wrong" for finding in findings)
    if wrong:
        raise ValueError(f"{options.features} cannot be used: what is wrong is above ({wrong}).")
    print(f"{options.features} can be used.")


def _add_train(commands: Any) -> None:
    command = commands.add_parser(
        "train",
        help="train a fusion layer on a feature file",
        description="Train a layer and a head; the same command again resumes what was interrupted.",
    )
    _add_features(command)
    command.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    command.add_argument(
        "--layer", default="gmf", metavar="NAME", help="one of those below (default: %(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    command.add_argument(
        "--unlabelled",
        type=Path,
        metavar="MORE",
        help="file of more samples to learn from, labels not looked at",
    )
    command.add_argument("--tensorboard", action="store_true", help="log for TensorBoard, in RUN/tensorboard")
    command.add_argument(
        "--record-migration",
        action="store_true",
        help="record how channels migrate, in RUN/migration.npz, for `migrate RUN`",
    )
    _add_task(command)
    _add_recipe(command)
    command.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    from .distributed import is_main
    from .evaluation.scores import evaluate, with_mean_of_incomplete
    from .training.loop import train
    from .training.migration_recorder import MigrationRecorder

    features = _features(options)
    unlabelled = _features(options, file=options.unlabelled) if options.unlabelled else None
    recorders = [MigrationRecorder(options.out / RECORD)] if options.record_migration else []
    run = train(
        options.layer,
        features,
        recipe=_recipe(options),
        seed=options.seed,
        task=options.task,
        out=options.out,
        unlabelled=unlabelled,
        tensorboard=options.tensorboard,
        callbacks=recorders,
    )
    if not is_main():
        return
    print(f"{run.layer}: {run.parameters:,} parameters, {len(run.history)} epochs, saved in {options.out}")
    if features.with_split(options.seed).has("test"):
        print(_table(with_mean_of_incomplete(evaluate(run, features))))


def _add_evaluate(commands: Any) -> None:
    command = commands.add_parser(
        "evaluate",
        help="score a trained run with all modalities and with some missing",
        description="Score a run with all modalities and with every subset of them missing (of more than six: "
        "without each, and each alone).",
    )
    command.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    _add_features(command, choose=False)
    command.add_argument(
        "--part", default="test", metavar="PART", help="test, validation, train or all (default: %(default)s)"
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from .evaluation.scores import evaluate, with_mean_of_incomplete
    from .training.run import load_run

    run = load_run(options.folder)
    features = _features(options, list(run.dims))
    run.model.to(features.device)
    scores = with_mean_of_incomplete(evaluate(run, features, part=options.part))
    print(json.dumps(scores, indent=1) if options.json else _table(scores))


def _add_compare(commands: Any) -> None:
    command = commands.add_parser(
        "compare",
        help="train and score several layers over several seeds",
        description="Train every layer with several seeds under one recipe; tables of means with confidence "
        "intervals, tests against the best baseline, cost.",
    )
    _add_features(command)
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for table and JSON")
    command.add_argument("--layers", type=_names, metavar="A,B", help="out of those below; default: all")
    command.add_argument(
        "--baselines", type=_names, metavar="A,B", help="default: all but gmf..., scfae... and cell..."
    )
    command.add_argument("--seeds", type=int, default=5, help="default: %(default)s")
    command.add_argument("--diagnostics", action="store_true", help="also look inside the layers")
    command.add_argument("--html", action="store_true", help="also write comparison.html")
    _add_task(command)
    _add_recipe(command)
    command.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> None:
    from .distributed import is_main
    from .evaluation.comparison import compare

    found = compare(
        _features(options),
        options.layers,
        recipe=_recipe(options),
        seeds=options.seeds,
        task=options.task,
        baselines=options.baselines,
        diagnostics=options.diagnostics,
        progress=is_main(),
    )
    if not is_main():
        return
    found.save(options.out, html=options.html)
    print(found.table(), end="")


def _add_migrate(commands: Any) -> None:
    command = commands.add_parser(
        "migrate",
        help="watch the channels of every modality migrate as ions, or how a training moved them",
        description="Dissociate the features, without training, and draw how their channels migrate; of "
        "sequences, those of their means. Of a run: what --record-migration has recorded.",
    )
    command.add_argument(
        "features", type=Path, metavar="FEATURES", help=".npz or .safetensors file, or folder of a run"
    )
    _add_choice(command)
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    command.add_argument("--films", choices=("gif", "html"), help="also write a film of every modality")
    command.set_defaults(run=_migrate)


def _migrate(options: argparse.Namespace) -> None:
    from .demo import draw_migration, film_migration
    from .grounded.subspaces import dissociate

    if options.features.is_dir():
        _draw_training(options)
        return
    subspaces = dissociate(_features(options).pooled().modalities)
    print(subspaces)
    for shown in draw_migration(subspaces, options.out):
        print(shown.path)
    for path in film_migration(subspaces, options.out, options.films) if options.films else ():
        print(path)


def _draw_training(options: argparse.Namespace) -> None:
    from .grounded.migration_record import load_migration
    from .training_pictures import draw_training

    if not (options.features / RECORD).is_file():
        raise ValueError(
            f"{options.features} holds no {RECORD}: train with --record-migration, or give a feature file."
        )
    record = load_migration(options.features / RECORD)
    for path in draw_training(record, options.modalities or list(record.courses), options.out, options.films):
        print(path)


def _add_demo(commands: Any) -> None:
    command = commands.add_parser(
        "demo",
        help="a cell charges, two views migrate, layers are compared; figures and a report",
        description="The main job on the handwritten digits of scikit-learn: figures and report.html.",
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the report")
    command.add_argument("--seeds", type=int, default=5, help="default: %(default)s")
    command.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    import torch

    from .demo import demo

    # Tensors are small here; more threads would only wait for each other.
    torch.set_num_threads(1)
    demo(options.out, seeds=options.seeds)


def _add_features(command: argparse.ArgumentParser, choose: bool = True) -> None:
    command.add_argument("features", type=Path, metavar="FEATURES", help=".npz or .safetensors file")
    if choose:
        _add_choice(command)
    else:
        _add_device(command)


def _add_choice(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--modalities", type=_names, metavar="A,B", help="which, in this order; default: all"
    )
    _add_device(command)


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")


def _add_task(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--task",
        metavar="TASK",
        help="classification, regression, retrieval or conflict (default: one of the first two, by the labels)",
    )


def _add_recipe(command: argparse.ArgumentParser) -> None:
    recipe = command.add_argument_group("recipe", "settings of fusion.Recipe; they change the one chosen")
    named = recipe.add_mutually_exclusive_group()
    named.add_argument("--paper", action="store_true", help="train as the GMF paper did")
    named.add_argument(
        "--modern", action="store_true", help="warm-up, clipped gradients, early stopping, best weights"
    )
    for name, kind, what in SETTINGS:
        recipe.add_argument(f"--{name.replace('_', '-')}", type=kind, help=what)
    for name, what in (
        ("standardise", "features are not scaled"),
        ("all-present", "no step sees all modalities at once"),
        ("random-subsets", "no step sees random subsets of the modalities (no modality dropout)"),
        ("each-alone", "no step sees a modality alone"),
    ):
        option = name.replace("-", "_")
        recipe.add_argument(f"--no-{name}", dest=option, action="store_const", const=False, help=what)
    recipe.add_argument(
        "--mixed-precision", action="store_const", const=True, help="forward passes of training in bfloat16"
    )


def _recipe(options: argparse.Namespace) -> "Recipe":
    from .training.recipe import DEFAULT, Recipe

    switches = ("standardise", "all_present", "random_subsets", "each_alone", "mixed_precision")
    names = [*(name for name, _, _ in SETTINGS), *switches]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    chosen = Recipe.paper() if options.paper else Recipe.modern() if options.modern else DEFAULT
    return replace(chosen, **given)


def _features(
    options: argparse.Namespace, modalities: list[str] | None = None, file: Path | None = None
) -> "Features":
    from .data.feature_file import load_features

    features = load_features(file or options.features, getattr(options, "modalities", modalities))
    try:
        return features.to(options.device)
    except (RuntimeError, AssertionError) as error:  # torch's ways to say that there is no such device
        raise ValueError(f"device {options.device!r} cannot be used: {str(error).splitlines()[0]}") from error


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _table(scores: "Scores") -> str:
    metrics = list(scores["all"])
    width = max(len(case) for case in scores)
    lines = [f"{'case':{width}}  " + "  ".join(f"{metric:>11}" for metric in metrics)]
    for case, values in scores.items():
        lines.append(f"{case:{width}}  " + "  ".join(f"{values[metric]:11.4f}" for metric in metrics))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
