"""Whether a film review is a good one: the tutorial's text network, native Keras, nothing of a cluster."""

import tarfile
from pathlib import Path

import keras
import numpy as np
from _made_reviews import make_reviews
from keras import layers

LABELS = {"neg": 0, "pos": 1}
VALIDATION_SHARE = 0.2


def build_preprocessing(inputs: np.ndarray, max_tokens: int = 20000, sequence_length: int = 500) -> keras.Layer:
    """Words to numbers, by how frequent they are in the training texts."""
    vectorizer = layers.TextVectorization(max_tokens=max_tokens, output_sequence_length=sequence_length)
    vectorizer.adapt(inputs)
    return vectorizer


def build_model(max_tokens: int = 20000, units: int = 128) -> keras.Model:
    """Two strided convolutions over embedded words, the strongest answer of each filter, and a probability."""
    inputs = keras.Input(shape=(None,), dtype="int64")
    x = layers.Embedding(max_tokens, units)(inputs)
    x = layers.Dropout(0.5)(x)
    x = layers.Conv1D(units, 7, strides=3, activation="relu")(x)
    x = layers.Conv1D(units, 7, strides=3, activation="relu")(x)
    x = layers.GlobalMaxPooling1D()(x)
    x = layers.Dense(units, activation="relu")(x)
    x = layers.Dropout(0.5)(x)
    # In float32 whatever the policy: a probability close to 0 or 1 has no half-precision form.
    outputs = layers.Dense(1, activation="sigmoid", dtype="float32")(x)
    return keras.Model(inputs, outputs, name="text_classification")


def load_data(name: str, folder: Path, reviews: int = 600) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Texts and their labels, 0 or 1. `reviews` is how many are made for the corpus of that name."""
    if name == "reviews":
        train, test = make_reviews(reviews, seed=0), make_reviews(reviews // 3, seed=1)
    elif name == "aclImdb":
        train, test = (read_texts(folder, "aclImdb", part) for part in ("train", "test"))
    else:
        raise ValueError(f"data.name is {name!r}; there are aclImdb and reviews")
    texts, labels = shuffled(*train)
    held_out = int(len(texts) * VALIDATION_SHARE)
    return {
        "train": (texts[held_out:], labels[held_out:]),
        "validation": (texts[:held_out], labels[:held_out]),
        "test": (np.array(test[0], dtype=object), np.array(test[1], dtype=np.int64)),
    }


def shuffled(texts: list[str], labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The same texts in another order, always the same one: files lie sorted by label."""
    order = np.random.default_rng(0).permutation(len(texts))
    return np.array(texts, dtype=object)[order], np.array(labels, dtype=np.int64)[order]


def read_texts(folder: Path, corpus: str, part: str) -> tuple[list[str], list[int]]:
    """The texts of `corpus/part/pos/*.txt` and `neg`, from a folder, or straight from its archive.

    50,000 unpacked files would be a tenth of what a user of TRUBA may have.
    """
    if (folder / corpus).is_dir():
        return read_folder(folder / corpus / part)
    found = {}
    with tarfile.open(folder / f"{corpus}_v1.tar.gz") as archive:
        for member in archive:
            path = Path(member.name)
            if member.isfile() and path.suffix == ".txt" and path.parts[-3:-1] in {(part, label) for label in LABELS}:
                found[path.parts[-2:]] = archive.extractfile(member).read().decode()
    if not found:
        raise ValueError(f"{folder / corpus}_v1.tar.gz has no texts in {part}/pos and {part}/neg")
    return [found[key] for key in sorted(found)], [LABELS[label] for label, _ in sorted(found)]


def read_folder(folder: Path) -> tuple[list[str], list[int]]:
    """The texts of a folder's `pos` and `neg`, in the order of their names."""
    files = sorted(path for label in LABELS for path in (folder / label).glob("*.txt"))
    if not files:
        raise ValueError(f"{folder} has no texts in pos and neg")
    return [path.read_text(encoding="utf-8") for path in files], [LABELS[path.parent.name] for path in files]
