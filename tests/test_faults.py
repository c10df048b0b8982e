"A small part of the table of faults in bench/faults.py: its bounds hold, and it sees what breaks them."
import importlib.util
import subprocess
import sys
from pathlib import Path

from llmdata_nb.rowfile import RowFile

SCRIPT = Path(__file__).parents[1] / "bench" / "faults.py"


def bench():
    "The script as a module"
    spec = importlib.util.spec_from_file_location("faults", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def right_row(number):
    request, response = bench().right_texts(number)
    return {"id": f"r{number}", "messages": [{"role": "user", "content": request}, {"role": "assistant", "content": response}]}


def write_rows(path, rows):
    file = RowFile(path)
    for row in rows: file.append(row)
    file.close()


def test_it_sees_rows_that_are_lost_doubled_or_wrong(tmp_path):
    "Of the rows 0 to 8, 0, 1 and 5 are bad; 2 is doubled, 3 has another text, 6 failed with reason and 7 without one, 8 is nowhere"
    kept = [*map(right_row, (2, 2, 4)), right_row(3) | {"messages": right_row(4)["messages"]}, right_row(5), right_row(99)]
    write_rows(tmp_path / "data" / "train-00000-of-00001.parquet", kept)
    write_rows(tmp_path / "dropped.parquet", [{"id": "r0", "reason": "bad"}, {"id": "r1", "reason": "bad"}])
    write_rows(tmp_path / "failed.parquet", [{"id": "r6", "reason": "400"}, {"id": "r7", "reason": "timeout"}])
    found = bench().faults_of_rows(tmp_path, range(9), hopeless={6})
    assert found == {"lost": 2, "doubled": 1, "wrongly kept": 3}  # 7 and 8; 2; 3, 5 and 99


def test_the_bounds_hold_at_a_kill():
    "The other cases are tested beside what they are about: limits, store, run"
    command = [sys.executable, SCRIPT, "--only", "kill", "--rows", "40", "--kills", "1"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
