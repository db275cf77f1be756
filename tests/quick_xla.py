"""Options of XLA with which compiling takes a fifth of the time; `.ci/run` reads them from what this file prints.

What tests compile runs for moments: it is not optimised by LLVM, its fused loops are made by the older emitters, and
all is one module. XLA's own passes stay.
"""

FLAGS = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters --xla_cpu_parallel_codegen_split_count=1"
)

if __name__ == "__main__":
    print(FLAGS)
