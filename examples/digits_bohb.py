"""Tune a small torch network on scikit-learn's handwritten digits, with BOHB.

    python examples/digits_bohb.py

Hyperband gives many configurations one epoch and few of them all 27; BOHB's model proposes the configurations. Kill it
half-way and run it again: it goes on where it was. Run it again when it has ended: it prints what it found.

The training function is an ordinary one for Ray Tune (``import raytuner as tune``), but for one line: it asks
``tune.should_checkpoint()`` before it saves, so that no time goes into checkpoints that nobody will read.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import raytuner as tune
from raytuner.schedulers import HyperBandScheduler
from raytuner.searchers import BOHB

EPOCHS = 27
SEED = 0

SPACE = {
    "layers": tune.randint(1, 4),  # as in Ray, the upper end is not included
    "width": tune.qlograndint(8, 256, 8),
    "activation": tune.choice(["relu", "gelu", "tanh", "sigmoid"]),
    "dropout": tune.uniform(0.0, 0.8),
    "batch_size": tune.choice([32, 64, 128, 256]),
    "lr": tune.loguniform(1e-5, 1.0),
    # Each optimizer has its own parameters: they exist only where it was chosen.
    "optimizer": tune.choice(
        [
            {"name": "sgd", "momentum": tune.uniform(0.0, 0.99), "nesterov": tune.choice([False, True])},
            {"name": "adamw", "weight_decay": tune.loguniform(1e-5, 1.0)},
        ]
    ),
}

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}

Split = tuple[Tensor, Tensor]  # images (n, 64), their digits (n,)


def digits() -> tuple[Split, Split, Split]:
    """Training, validation and test set: 1,077, 360 and 360 images, each digit as frequent in all of them."""
    images, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=SEED)
    train, validation = train_test_split(rest, test_size=360, stratify=labels[rest], random_state=SEED)

    def split(rows: np.ndarray[Any, Any]) -> Split:
        return torch.tensor(images[rows] / 16, dtype=torch.float32), torch.tensor(labels[rows])

    return split(train), split(validation), split(test)


def network(config: Mapping[str, Any]) -> nn.Module:
    """Layers of equal width, each with an activation and dropout."""
    modules: list[nn.Module] = []
    inputs = 64
    for _ in range(config["layers"]):
        modules += [
            nn.Linear(inputs, config["width"]),
            ACTIVATIONS[config["activation"]](),
            nn.Dropout(config["dropout"]),
        ]
        inputs = config["width"]
    return nn.Sequential(*modules, nn.Linear(inputs, 10))


def optimizer_of(config: Mapping[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that was chosen, with its own parameters."""
    chosen = config["optimizer"]
    if chosen["name"] == "sgd":
        # Nesterov's form needs some momentum, and the space allows none.
        momentum = max(chosen["momentum"], 1e-3)
        return torch.optim.SGD(model.parameters(), config["lr"], momentum, nesterov=chosen["nesterov"])
    return torch.optim.AdamW(model.parameters(), config["lr"], weight_decay=chosen["weight_decay"])


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, data: Split, batch_size: int) -> None:
    """Once through the training set, in a new order."""
    model.train()
    images, labels = data
    order = torch.randperm(len(labels))
    for start in range(0, len(labels), batch_size):
        rows = order[start : start + batch_size]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def evaluate(model: nn.Module, data: Split) -> dict[str, float]:
    """Accuracy and mean loss on a data set."""
    model.eval()
    images, labels = data
    scores = model(images)
    return {
        "accuracy": (scores.argmax(1) == labels).float().mean().item(),
        "loss": nn.functional.cross_entropy(scores, labels).item(),
    }


def train(config: Mapping[str, Any]) -> None:
    """Train one configuration, and report after every epoch. Given the same configuration it says the same again."""
    torch.set_num_threads(1)  # two trials side by side would otherwise fight for the cores
    torch.manual_seed(SEED)
    training, validation, _ = digits()
    model = network(config)
    optimizer = optimizer_of(config, model)
    epoch = 0

    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as folder:
            saved = torch.load(Path(folder, "state.pt"), weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["chance"])
        epoch = saved["epoch"]

    while epoch < EPOCHS:
        epoch += 1
        train_epoch(model, optimizer, training, config["batch_size"])
        metrics = evaluate(model, validation)
        if not tune.should_checkpoint():
            tune.report(metrics)
            continue
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "chance": torch.get_rng_state(),
            "epoch": epoch,
        }
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, Path(folder, "state.pt"))
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))


def final_accuracy(config: Mapping[str, Any], checkpoint: tune.Checkpoint) -> float:
    """How well a trained network does on images that no decision has seen."""
    model = network(config)
    with checkpoint.as_directory() as folder:
        model.load_state_dict(torch.load(Path(folder, "state.pt"), weights_only=True)["model"])
    return evaluate(model, digits()[2])["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Tune a small torch network on handwritten digits with BOHB.")
    parser.add_argument("--num-samples", type=int, default=49, help="configurations to try (default: %(default)s)")
    parser.add_argument("--storage", default=str(Path(__file__).resolve().parent.parent / "results"))
    parser.add_argument("--name", default="digits_bohb", help="of the study; the same name goes on with it")
    args = parser.parse_args()

    tuner = tune.Tuner(
        train,
        param_space=SPACE,
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            num_samples=args.num_samples,  # 49: once through Hyperband's brackets for 27 epochs
            search_alg=BOHB(),
            scheduler=HyperBandScheduler(max_t=EPOCHS, reduction_factor=3),
            seed=SEED,
        ),
        run_config=tune.RunConfig(
            name=args.name,
            storage_path=args.storage,
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
        ),
    )
    results = tuner.fit()
    best = results.get_best_result()
    assert best.checkpoint is not None  # training saves one wherever Hyperband stops it

    print(f"\nThe best of {len(results)} configurations:")
    for name, value in flat(best.config).items():
        print(f"  {name:<24} {f'{value:.4g}' if isinstance(value, float) else value}")
    print(f"Epochs                     {best.metrics['training_iteration']}")
    print(f"Validation accuracy        {best.metrics['accuracy']:.2%}")
    print(f"Test accuracy              {final_accuracy(best.config, best.checkpoint):.2%}")
    print(f"Study                      {results.experiment_path}")
    print(f"Its table                  {Path(results.experiment_path, 'reports')}")
    print(f"The best one's checkpoint  {best.checkpoint.path}")


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined by ``/``."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}/")
        else:
            found[f"{prefix}{name}"] = value
    return found


if __name__ == "__main__":
    main()
