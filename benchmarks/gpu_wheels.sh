#!/bin/sh
# Fetches what a GPU image with jax, flax, optax, orbax and torch may lack, as wheels for Python 3.12:
#   benchmarks/gpu_wheels.sh wheels && pip install --no-index --no-deps wheels/*.whl     (there)
#   benchmarks/gpu_wheels.sh wheels clu diffusers                                        (these alone)
set -eu
folder=${1:?name a folder, like benchmarks/gpu_wheels.sh wheels}
shift
[ $# -gt 0 ] || set -- absl-py array_record clu diffusers diffrax einops equinox etils grain \
  jaxtyping lineax ml_collections optimistix portpicker tqdm wadler-lindig
for package in "$@"; do
  python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
    --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --dest "$folder" "$package"
done
ls -l "$folder"
