"""The first study: three changes to the architecture of a small parent, on the embedded corpus."""

from jaxformer import Study

STUDY = Study(parent="first", variants=("squared_relu", "swiglu", "layernorm"), seeds=3)
