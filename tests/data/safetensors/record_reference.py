"""Records what the reference reader decides on each case: record_reference.py CASES_DIR > reference_decisions.txt

CASES_DIR is written by: R1RUN_WRITE_SAFETENSORS_CASES=CASES_DIR checkpoint_test --gtest_filter='SafetensorsCases.*'
"""
import pathlib
import sys

import safetensors

folder = pathlib.Path(sys.argv[1])
print(f"# safetensors.deserialize() of the Python package safetensors {safetensors.__version__}; made by record_reference.py")
for i, name in enumerate((folder / "names.txt").read_text().splitlines()):
    data = (folder / f"{i:05}.safetensors").read_bytes()
    try:
        safetensors.deserialize(data)
        decision = "accept"
    except safetensors.SafetensorError as error:
        decision = "reject"
    print(decision, name)
