"""The parameters of a run: flat, typed, validated before any work starts.

Defaults are the paper's protocol where it states one. ``params/*.yaml`` hold one set a dataset;
papermill passes the same flat keys.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import pydantic
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from elfs_lib.bounds import STRICT, parameter
from elfs_lib.clustering.registry import CLUSTERINGS
from elfs_lib.clustering.temi_config import Start, TemiConfig, Weighting
from elfs_lib.data.base import SIZE_RANGE
from elfs_lib.data.datasets import DATASETS
from elfs_lib.embedding import encoder_bounds
from elfs_lib.embedding.embedding_file import PRECOMPUTED
from elfs_lib.embedding.encoder_checks import check_encoder
from elfs_lib.embedding.encoders import check_method
from elfs_lib.errors import ElfsError, choose, fault_sentence, first_fault, own_error
from elfs_lib.project import project_root
from elfs_lib.selection import METHODS, SCORES
from elfs_lib.selection.double_end import RATIOS
from elfs_lib.training.recipes import RECIPES, find_recipe

Share = float | int

_Item = TypeVar("_Item")
# YAML and papermill write lists; a text is not split into letters: the message shows it
ListOf = Annotated[
    tuple[_Item, ...], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)
]
# YAML reads off and on as truth values
OffAutoOn = Annotated[
    Literal["off", "auto", "on"],
    BeforeValidator(lambda v: ("off", "on")[v] if isinstance(v, bool) else v),
]
_RECIPES = ", ".join(RECIPES)
_temi = partial(parameter, TemiConfig)
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Params(BaseModel):
    """One run's parameters. Field descriptions are the documentation of the YAML keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, **STRICT)

    # data
    dataset: str = Field("digits", description="name of the dataset")
    data_path: str | None = Field(
        None, description="file or folder of parquet, webdataset and image_folder"
    )
    image_size: int | None = Field(
        None, ge=SIZE_RANGE[0], le=SIZE_RANGE[1], description="stored side in pixels"
    )
    classes: int | None = _temi("classes", "number of classes; null: the dataset's", default=None)
    flip: bool = Field(True, description="whether a mirrored image keeps its class")
    crop_pad: int = Field(4, ge=0, le=64, description="random shift in pixels when training")
    # how to compute
    seed: int = Field(0, ge=0, lt=2**31, description="seed of clustering, proxy and search")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of matmuls")
    compile: OffAutoOn = Field(
        "off", description="torch.compile, and CUDA graphs; auto: on CUDA, where it pays"
    )
    loader: Literal["auto", "resident", "streamed"] = Field(
        "auto", description="images in memory, or read from disk as they are needed"
    )
    shuffle: Literal["full", "blocks"] = Field(
        "full", description="order of the images; blocks: for a disk that is slow at random reads"
    )
    # embeddings
    encoder: str = Field("dino_vitb16", description="name, or names joined by +")
    encoder_checkpoint: str | None = Field(
        None, description="weights file: a path, or a name in ELFS_ENCODER_DIR"
    )
    embeddings_path: str | None = Field(
        None, description="file of encoder precomputed: .npy, .npz, .parquet or .safetensors"
    )
    encoder_size: int | None = Field(None, ge=8, le=1024, description="input side in pixels")
    encoder_epochs: int | None = Field(
        None,
        **encoder_bounds.EPOCHS,
        description="epochs of an encoder trained on the images; null: its own default",
    )
    encoder_network: str | None = Field(
        None, description="network of encoder self_supervised; null: the method's own default"
    )
    encoder_method: Literal["contrastive", "emp_ssl"] = Field(
        "contrastive", description="how encoder self_supervised is trained"
    )
    encoder_views: int | None = Field(
        None,
        **encoder_bounds.VIEWS,
        description="crops whose mean is an image's embedding; null: the whole image",
    )
    encoder_view_area: float = Field(
        0.25, **encoder_bounds.VIEW_AREA, description="share of the image in a crop"
    )
    encoder_pca: int | None = Field(
        None, ge=2, description="principal components kept of each encoder's features; null: all"
    )
    neighbors: int = Field(50, ge=1, description="K, nearest neighbours of each image")
    neighbor_search: Literal["exact", "ivf", "hnsw", "ivf_pq"] = Field(
        "exact", description="others are for millions of images and miss some; ivf_pq: on disk"
    )
    # clustering
    clustering: str = Field(
        "temi", description=f"what gives the pseudo-labels; {', '.join(CLUSTERINGS)}"
    )
    temi_heads: int = _temi("heads", "H, clustering heads")
    temi_epochs: int = _temi("epochs", "passes over the images")
    temi_batch: int = _temi("batch", "images a step, each with one neighbour")
    temi_learning_rate: float = _temi("learning_rate", "for a batch of 256, scaled with the batch")
    temi_warmup_epochs: int = _temi("warmup_epochs", "in which the rate rises linearly")
    temi_weight_decay: float = _temi("weight_decay", "of AdamW")
    temi_teacher_momentum: float = _temi("teacher_momentum", "EMA of the teacher's weights")
    temi_beta: float = _temi("beta", "exponent of the PMI")
    temi_weighting: Weighting = _temi("weighting", "whose probabilities weigh the pairs")
    temi_start: Start = _temi(
        "start", "weights, or a spectral clustering that each head learns first"
    )
    temi_hidden: int = _temi("hidden", "width of the hidden layer")
    temi_bottleneck: int = _temi("bottleneck", "width of the layer before the clusters")
    temi_pca: int | None = _temi("pca", "reduce embeddings to this many numbers")
    temi_standardize: bool = _temi("standardize", "scale features to variance 1 first")
    temi_loss_epochs: int = _temi("loss_epochs", "epochs a head's loss is averaged over")
    temi_keep_heads: float = _temi("keep_heads", "share of heads in the mean")
    pseudo_labels: Literal["aligned_mean", "lowest_loss", "plain_mean"] = Field(
        "aligned_mean", description="how the heads agree on a label"
    )
    relabel_rounds: int = Field(0, ge=0, le=10, description="self-labelling rounds after TEMI")
    relabel_keep: float = Field(0.5, gt=0, le=1, description="confident share a round trains on")
    relabel_start: Literal["random", "encoder"] = Field(
        "random", description="a round trains a proxy from new weights, or fine-tunes the encoder"
    )
    # proxy training
    proxy_recipe: str = Field("resnet18", description=f"how the proxy is trained; {_RECIPES}")
    proxy_epochs: int = Field(200, ge=1, description="T, epochs that the dynamics cover")
    proxy_seeds: int = Field(1, ge=1, le=20, description="proxies whose scores are averaged")
    proxy_weights: Literal["equal", "confidence"] = Field(
        "equal", description="of the images in the proxy's loss; confidence: of their pseudo-labels"
    )
    # double-end pruning
    score: str = Field("aum", description="training-dynamics score that ELFS sorts by")
    budget: Share = Field(0.1, description="share of the images, or a count, to be labelled")
    hard_prune_ratio: float | None = Field(None, ge=0, lt=1, description="beta; null: search")
    hard_prune_ratios: ListOf[float] = Field(RATIOS, description="betas that are tried")
    search_recipe: str | None = Field(
        None, description="how the models of the search are trained; null: by eval_recipe"
    )
    search_steps: int = Field(40_000, ge=1, description="steps of each model of the search")
    search_seeds: int = Field(1, ge=1, le=20, description="splits that the search averages")
    # evaluation
    methods: ListOf[str] = Field(
        ("random", "elfs", "ccs_pseudo", "ccs", "aum_hardest"), description="as elfs methods lists"
    )
    budgets: ListOf[Share] = Field(
        (0.1, 0.2, 0.3, 0.5, 0.7), description="shares of the images, or counts, to evaluate at"
    )
    eval_recipe: str = Field("resnet18", description=f"how coreset models are trained; {_RECIPES}")
    eval_steps: int = Field(40_000, ge=1, description="the same for every size of coreset")
    eval_epochs: int | None = Field(None, ge=1, description="instead of eval_steps, if given")
    eval_batch: int | None = Field(None, ge=2, description="images a step; null: the recipe's")
    eval_seeds: ListOf[Seed] = Field(
        (0, 1, 2, 3, 4), description="of random selection and of training on the coreset"
    )
    hindsight_seeds: ListOf[Seed] = Field((), description="seeds that try every beta on test")

    @pydantic.model_validator(mode="after")
    def _check(self) -> Params:
        spec = DATASETS[choose("dataset", self.dataset, DATASETS)]
        self._check_device()
        # whether its file is there depends on the machine, as with the dataset: Run.check looks
        size = self.encoder_size
        check_encoder(self.encoder, self.encoder_checkpoint, input_size=size, there=False)
        check_method(self.encoder, self.encoder_method)
        if self.embeddings_path is not None and self.encoder != PRECOMPUTED:
            raise ElfsError(
                f"Parameter 'embeddings_path' is for encoder {PRECOMPUTED!r}, not for "
                f"{self.encoder!r}: leave one of them out."
            )
        if self.encoder_network is not None:
            from elfs_lib.training.models import NETWORKS

            choose("network", self.encoder_network, NETWORKS)
        for recipe in (self.proxy_recipe, self.eval_recipe, self.search_recipe):
            if recipe is not None:
                find_recipe(recipe)
        choose("clustering", self.clustering, CLUSTERINGS)
        trusts = {
            "proxy_weights": self.proxy_weights == "confidence",
            "relabel_rounds": self.relabel_rounds > 0,
        }
        name = next((name for name, set_so in trusts.items() if set_so), None)
        if name and self.clustering == "temi" and self.pseudo_labels != "aligned_mean":
            raise ElfsError(
                f"Parameter {name!r} is {getattr(self, name)!r} and goes by the confidence of the "
                "aligned mean: leave pseudo_labels at 'aligned_mean' in place of "
                f"{self.pseudo_labels!r}."
            )
        if self.relabel_start == "encoder" and (
            self.encoder in ("pixels", PRECOMPUTED) or "+" in self.encoder
        ):
            raise ElfsError(
                f"Parameter 'relabel_start' is 'encoder' but encoder {self.encoder!r} is not one "
                "network that could be fine-tuned: use relabel_start: random."
            )
        choose("score", self.score, SCORES)
        for method in self.methods:
            choose("method", method, METHODS)
        for name in ("methods", "budgets", "eval_seeds", "hard_prune_ratios", "hindsight_seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values) or not (values or name == "hindsight_seeds"):
                raise ElfsError(f"Parameter {name!r} must list at least one value, none twice.")
        for ratio in self.hard_prune_ratios:
            if not 0 <= ratio < 1:
                raise ElfsError(
                    f"Parameter 'hard_prune_ratios' holds {ratio}: each must be in [0, 1)."
                )
        for name, budget in (("budget", self.budget), *(("budgets", b) for b in self.budgets)):
            if budget <= 0 or (isinstance(budget, float) and budget > 1):
                raise ElfsError(
                    f"Parameter {name!r} is {budget}: give a share above 0 and at most 1, "
                    "or a whole number of images."
                )
            # A count waits until the number of images is known.
            if isinstance(budget, float) and (name == "budget" or self.searches_beta):
                self._check_sum(name, budget)
        side = self.image_size or spec.image_size
        if side is not None and self.crop_pad >= side:
            raise ElfsError(
                f"Parameter 'crop_pad' is {self.crop_pad} on images of {side} px: "
                f"choose at most {side - 1}."
            )
        return self

    @property
    def searches_beta(self) -> bool:
        """Whether a beta is needed at each of the budgets, and not only at ``budget``."""
        return bool(self.hindsight_seeds) or any(METHODS[m].takes_beta for m in self.methods)

    def _check_device(self) -> None:
        kind, colon, number = self.device.partition(":")
        choose("device", kind, ("auto", "cpu", "cuda", "mps"))
        if colon and not (kind == "cuda" and number.isascii() and number.isdecimal()):
            raise ElfsError(f"Parameter 'device' is {self.device!r}: number a GPU as cuda:0.")

    def _check_sum(self, name: str, budget: float) -> None:
        ratio = self.hard_prune_ratio
        least = min(self.hard_prune_ratios) if ratio is None else ratio
        if least + budget > 1 + 1e-9:
            given = "hard_prune_ratios" if ratio is None else "hard_prune_ratio"
            raise ElfsError(
                f"Parameter {given!r} ({least:g}) and {name!r} ({budget:g}) add up to more than 1: "
                "lower one of them."
            )

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> Params:
        """Validate a mapping of parameters.

        Raises:
            ElfsError: one sentence on the first parameter that is wrong.
        """
        for name in values:
            choose("parameter", name, cls.model_fields)
        # NumPy's numbers are numbers here, as in every other argument
        values = {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}
        try:
            return cls(**values)
        except pydantic.ValidationError as error:
            if own := own_error(error):
                raise own from None
            fault = first_fault(error)
            if isinstance(fault.value, str) and fault.value.lstrip().startswith("["):
                raise ElfsError(
                    f"Parameter {fault.key!r} is the text {fault.value!r} and should be a list: "
                    f"papermill takes one as -y '{fault.key}: {fault.value}'."
                ) from None
            said = fault_sentence(f"Parameter {fault.key!r}", fault.value, fault)
            raise ElfsError(said) from None

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> Params:
        """Read a YAML file of flat keys; ``overrides`` win over the file.

        The file names its dataset: that is how :meth:`from_notebook` tells a file, whose other keys
        have the library's defaults, from a change to a page's own values.

        Raises:
            ElfsError: if the file is missing, is not YAML, names no dataset, or a parameter is
                wrong.
        """
        values = read_yaml(path)
        if {"params", "seeds"} <= values.keys():
            raise ElfsError(f"{path} is a sweep, not parameters of a run: try elfs sweep {path}.")
        params = cls.make({**values, **(overrides or {})})
        if "dataset" not in values:
            raise ElfsError(
                f"{path} names no dataset: add a line for it, such as 'dataset: digits' or "
                "'dataset: image_folder'."
            )
        return params

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> Params:
        """Collect parameters from a notebook's variables, as papermill sets them.

        What papermill injected is recognised by the cell that it writes, which starts with
        ``# Parameters``; names in it that are not parameters are refused. Injected parameters that
        name a dataset are those of a file: what the notebook names and they leave out has the
        library's default, as in :meth:`load`, for the notebook's own values are those of its own
        dataset. What neither names, since the notebook does not read it, is that of the dataset's
        file in ``params/``. Prints where the values are from, if they are from two places.
        """
        cells = [c for c in namespace.get("In", []) if c.lstrip().startswith("# Parameters")]
        injected = {
            node.id
            for node in ast.walk(ast.parse("\n".join(cells)))
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        for name in sorted(injected):
            choose("parameter", name, cls.model_fields)
        of_file = "dataset" in injected
        named = cls.model_fields.keys() & namespace.keys()
        left_out = named - injected
        if injected and left_out:
            given = ", ".join(name for name in cls.model_fields if name in injected)
            rest = "the library's defaults (elfs params)" if of_file else "those of this notebook"
            print(f"Parameters set by papermill: {given}. All others are {rest}.")
        rest = values_of_dataset(namespace.get("dataset"))
        rest = {name: value for name, value in rest.items() if name not in named}
        own = {name: namespace[name] for name in (injected if of_file else named)}
        return cls.make(rest | own)


_NUMBERS = {
    "int": r"[-+]?(0|[1-9][\d_]*)$",
    "float": r"[-+]?((\d[\d_]*\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf|INF))$"
    r"|\.(nan|NaN|NAN)$",
}


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, with the numbers of YAML 1.2: 1e-4 is one; 010 (octal before), 1:30 (base
    60) and dates are text. No key is given twice."""

    yaml_implicit_resolvers = {
        first: [
            (tag, rule)
            for tag, rule in rules
            if tag.rpartition(":")[2] not in (*_NUMBERS, "timestamp")
        ]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


for _kind, _rule in _NUMBERS.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(_rule), list("-+.0123456789")
    )


def parse_yaml(text: str) -> Any:
    """Read YAML safely: numbers, texts, lists and mappings, never an object.

    Raises:
        yaml.YAMLError: if it is not YAML, is nested too deeply, or a mapping gives a key twice.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.composer.ComposerError(problem="it is nested too deeply") from None


def values_of_dataset(dataset: object) -> dict[str, Any]:
    """What ``params/<dataset>.yaml`` says; nothing if there is no such file."""
    file = project_root() / "params" / f"{dataset}.yaml"
    return read_yaml(file) if file.exists() else {}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping safely.

    Raises:
        ElfsError: one sentence if the file is missing, is not YAML or is not a mapping.
    """
    path = Path(path)
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ElfsError(f"Cannot read {path}: {error.strerror}; check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        problem = getattr(error, "problem", None) or "not text"
        raise ElfsError(f"{path} is not valid YAML{where}: {problem}.") from None
    if not isinstance(content, dict):
        raise ElfsError(f"{path} must hold 'name: value' lines, one parameter each.")
    return content
