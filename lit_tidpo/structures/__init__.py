"""The plain structures that preference data turn into on their way to the loss.

Shape legend, used all over the package:

====  =====================================================================================
``B``  prompts (groups of responses; a preference pair is a group of two) in a batch
``M``  response tokens of all rows together
``N``  rows (responses) in a batch, role by role, in each role by prompt
``T``  token positions of a row: prompt, response, right padding
``V``  vocabulary entries
``H``  width of the embeddings
====  =====================================================================================

Every ``[N, T]`` tensor of per-token values is aligned with its *own* token: column ``t`` belongs to
the token ``input_ids[:, t]``, whose log-prob the model predicts at position ``t - 1``.
"""

from lit_tidpo.structures.batch import ResponseBatch
from lit_tidpo.structures.joining import joined
from lit_tidpo.structures.results import Prediction, Results

__all__ = ["Prediction", "ResponseBatch", "Results", "joined"]
