"""What is particular to families of models, and to the libraries that they come from.

Every fact about an architecture of transformers, about peft or about Liger that the rest of the
package goes by stands here. What can be found out of a model is not stated but proven, in
:mod:`lit_tidpo.models.proofs`.
"""
