"""Train a classifier of handwritten digits with scikit-learn, epoch by epoch.

It runs the same by hand (`python train.py`) and as an experiment: what it writes to `outputs/` comes back, and a line
`::jobqueue name=value ...::` is progress that the platform shows.
"""

import argparse
import json
import time
from pathlib import Path

import joblib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split

CLASSES = np.arange(10)


def main() -> None:
    """Train, print progress after each epoch, and write the model and its numbers."""
    options = parse_options()
    outputs = Path("outputs")
    outputs.mkdir(exist_ok=True)
    images, labels = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        images / 16, labels, test_size=0.25, random_state=options.seed, stratify=labels
    )
    print(f"training on {len(x_train)} images, testing on {len(x_test)}", flush=True)

    model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=options.lr, random_state=options.seed)
    order = np.random.default_rng(options.seed)
    history = []
    for epoch in range(1, options.epochs + 1):
        for batch in np.array_split(order.permutation(len(x_train)), 20):
            model.partial_fit(x_train[batch], y_train[batch], classes=CLASSES)
        accuracy = float(model.score(x_test, y_test))
        history.append({"epoch": epoch, "accuracy": round(accuracy, 4)})
        print(f"epoch {epoch:2}/{options.epochs}  accuracy {accuracy:.3f}", flush=True)
        print(f"::jobqueue progress={epoch / options.epochs:.2f} accuracy={accuracy:.4f}::", flush=True)
        time.sleep(options.pause)

    joblib.dump(model, outputs / "model.joblib")
    (outputs / "metrics.json").write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
    result = {"accuracy": history[-1]["accuracy"], "epochs": options.epochs, "model": "model.joblib"}
    (outputs / "result.json").write_text(json.dumps(result) + "\n", encoding="utf-8")


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds to wait after an epoch, to watch it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
