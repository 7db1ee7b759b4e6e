"""The targets of an export by name."""

from ..projected.pairs import ProjectedPair
from . import axolotl, axolotl_spans, llama_factory, ms_swift, open_instruct, tinker, trl_dpo, trl_sft
from .target import SelectedText, Target

TOKEN_TARGETS: dict[str, Target[ProjectedPair]] = {
    "llama-factory": llama_factory.TARGET,
    "open-instruct": open_instruct.TARGET,
    "trl-dpo": trl_dpo.TARGET,
    "trl-sft": trl_sft.TARGET,
    "axolotl": axolotl.TARGET,
    "ms-swift": ms_swift.TARGET,
    "tinker": tinker.TARGET,
}
TEXT_TARGETS: dict[str, Target[SelectedText]] = {"axolotl-spans": axolotl_spans.TARGET}
WEIGHTED_TARGETS = [name for name, target in TOKEN_TARGETS.items() if target.weighted]
