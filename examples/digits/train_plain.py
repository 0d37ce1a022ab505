"""Train a softmax classifier of handwritten digits with nothing but the standard library.

For images that hold Python alone. The data set is `digits.csv` in the workspace: in each line 64 grey values from 0 to
16, and the digit.
"""

import argparse
import csv
import json
import math
import random
import time
from pathlib import Path

CLASSES = 10


def main() -> None:
    """Train, print progress after each epoch, and write the model and its numbers."""
    options = parse_options()
    outputs = Path("outputs")
    outputs.mkdir(exist_ok=True)
    chance = random.Random(options.seed)
    train, test = load(chance)
    print(f"training on {len(train)} images, testing on {len(test)}", flush=True)

    weights = [[0.0] * (len(train[0][0])) for _ in range(CLASSES)]
    history = []
    for epoch in range(1, options.epochs + 1):
        chance.shuffle(train)
        for pixels, digit in train:
            learn(weights, pixels, digit, rate=options.lr)
        accuracy = sum(classify(weights, pixels) == digit for pixels, digit in test) / len(test)
        history.append({"epoch": epoch, "accuracy": round(accuracy, 4)})
        print(f"epoch {epoch:2}/{options.epochs}  accuracy {accuracy:.3f}", flush=True)
        print(f"::jobqueue progress={epoch / options.epochs:.2f} accuracy={accuracy:.4f}::", flush=True)
        time.sleep(options.pause)

    (outputs / "model.json").write_text(json.dumps(weights) + "\n", encoding="utf-8")
    (outputs / "metrics.json").write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
    result = {"accuracy": history[-1]["accuracy"], "epochs": options.epochs, "model": "model.json"}
    (outputs / "result.json").write_text(json.dumps(result) + "\n", encoding="utf-8")


def load(chance: random.Random) -> tuple[list[tuple[list[float], int]], list[tuple[list[float], int]]]:
    """Return training and test samples, three to one: pixels from 0 to 1 with a constant 1 at the end, and a digit."""
    with Path("digits.csv").open(newline="", encoding="utf-8") as file:
        rows = [[int(cell) for cell in row] for row in csv.reader(file)]
    samples = [([value / 16 for value in row[:-1]] + [1.0], row[-1]) for row in rows]
    chance.shuffle(samples)
    cut = len(samples) * 3 // 4
    return samples[:cut], samples[cut:]


def scores(weights: list[list[float]], pixels: list[float]) -> list[float]:
    """Return one score for each digit."""
    return [sum(map(float.__mul__, row, pixels)) for row in weights]


def classify(weights: list[list[float]], pixels: list[float]) -> int:
    """Return the digit with the highest score."""
    found = scores(weights, pixels)
    return found.index(max(found))


def learn(weights: list[list[float]], pixels: list[float], digit: int, *, rate: float) -> None:
    """Move the weights one step down the gradient of the cross entropy of one sample."""
    found = scores(weights, pixels)
    top = max(found)
    powers = [math.exp(score - top) for score in found]
    total = sum(powers)
    for index, row in enumerate(weights):
        step = rate * ((index == digit) - powers[index] / total)
        row[:] = [weight + step * pixel for weight, pixel in zip(row, pixels, strict=True)]


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds to wait after an epoch, to watch it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
