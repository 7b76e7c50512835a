"""Made-up card payments with the columns of the well-known file, the same for a seed everywhere."""

import io

import numpy as np

FRAUD_SHARE = 0.01
# Fraud differs in these columns only, and not by much in any of them.
TELLING_COLUMNS, SHIFT = (1, 3, 4, 10, 12, 14, 17), 1.5
SECONDS = 2 * 24 * 3600


def make_csv(payments: int, seed: int) -> str:
    """A CSV text: Time (seconds, ascending), V1 to V28, Amount, and Class, which is 1 for one payment in a hundred."""
    random = np.random.default_rng(seed)
    fraud = random.random(payments) < FRAUD_SHARE
    seconds = np.sort(random.integers(0, SECONDS, payments))
    features = random.normal(size=(payments, 28))
    for column in TELLING_COLUMNS:
        features[fraud, column - 1] += SHIFT if column % 2 else -SHIFT
    amounts = random.lognormal(3.0, 1.2, payments)
    text = io.StringIO()
    columns = ["Time", *(f"V{number}" for number in range(1, 29)), "Amount", "Class"]
    text.write(",".join(f'"{column}"' for column in columns) + "\n")
    for row in range(payments):
        values = ",".join(f"{value:.6f}" for value in features[row])
        text.write(f'{seconds[row]},{values},{amounts[row]:.2f},"{int(fraud[row])}"\n')
    return text.getvalue()
