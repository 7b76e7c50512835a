#!/usr/bin/env bash
# huggingface_hub 2.4.0, hydra-core 1.3.8, jinja2 3.1.6, Python 3.11.
# Behaviour: a model with ModelHubMixin keeps its constructor's arguments, and save_pretrained writes them to
#   config.json. For an argument that JSON cannot hold it writes the parameter's default instead, without a warning. A
#   list from a Hydra config is such an argument.
# Expected: config.json says what the model was built with, or saving raises an error.
# Seen: built by Hydra with dilations [1, 2, 4]: config.json says [1, 1, 1], and the model that from_pretrained returns
#   computes 11.0 where the saved one computed 3.0. Built with a plain list: [1, 2, 4] and 3.0.
# Affects: anyone who builds models with hydra.utils.instantiate and shares or reloads them: if the argument changes no
#   weight's shape, as a dilation or a number of heads, the weights fit and the predictions are wrong.
#   _convert_: all in the config avoids it.
set -eu
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
# PYTHON=… uses that Python and its packages; nothing is installed.
if [ -z "${PYTHON-}" ]; then
    python3 -m venv "$room/venv"
    PYTHON=$room/venv/bin/python
    "$PYTHON" -m pip install --quiet huggingface_hub==2.4.0 hydra-core==1.3.8 jinja2==3.1.6
fi
cd "$room"
cat > net.py <<'PY'
import json

from huggingface_hub import ModelHubMixin


class Net(ModelHubMixin):
    """Three dilated differences, one after the other; PyTorchModelHubMixin keeps its arguments by the same code."""

    def __init__(self, dilations: list = [1, 1, 1]):
        self.dilations = dilations
        self.weights = [1.0, -1.0]

    def predict(self, row):
        for step in self.dilations:
            row = [self.weights[0] * a + self.weights[1] * b for a, b in zip(row, row[step:])]
        return row[0]

    def _save_pretrained(self, save_directory):
        (save_directory / "weights.json").write_text(json.dumps(self.weights))

    @classmethod
    def _from_pretrained(cls, *, model_id, **kwargs):
        arguments = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        net = cls(**{name: value for name, value in kwargs.items() if name not in arguments})
        net.weights = json.load(open(f"{model_id}/weights.json"))
        return net
PY
"$PYTHON" - <<'PY'
import json

from hydra.utils import instantiate
from net import Net
from omegaconf import OmegaConf

row = [float(n**3 % 17) for n in range(12)]
config = OmegaConf.create({"_target_": "net.Net", "dilations": [1, 2, 4]})
seen = {}
for name, net in {"plain": Net(dilations=[1, 2, 4]), "Hydra": instantiate(config)}.items():
    net.save_pretrained(name)
    saved = json.load(open(f"{name}/config.json"))["dilations"]
    seen[name] = net.predict(row), saved, Net.from_pretrained(name).predict(row)
    print(f"{name}: before {seen[name][0]}, config.json {saved}, after {seen[name][2]}")
assert seen["plain"][0] == seen["Hydra"][0], "Both models are the same"
assert seen["plain"][1:] == ([1, 2, 4], seen["plain"][0]), "A plain list is saved"
assert seen["Hydra"][1] == [1, 1, 1], "No longer seen: the default is saved in the argument's place"
assert seen["Hydra"][2] != seen["Hydra"][0], "No longer seen: the reloaded model predicts differently"
PY
