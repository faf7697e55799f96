"""The data of the cron example is what its generator writes, and its cron lines are right."""

import calendar
import importlib.util
import json
import re
import tempfile
import unittest
from datetime import datetime
from pathlib import Path
from unittest import mock

CRON = Path(__file__).resolve().parents[2] / "examples" / "cron"
spec = importlib.util.spec_from_file_location("make_data", CRON / "make_data.py")
make_data = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_data)

SPLITS = ("train", "valid", "test")


def read(split):
    """[(sentence, cron line)]"""
    lines = (CRON / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [tuple(m["content"] for m in json.loads(line)["messages"][1:]) for line in lines]


def time_of_day(sentence):
    """(minute, hour) as Python's own clock reads the sentence, or None if it names none."""
    if match := re.search(r"\d+:\d\d [ap]m", sentence):
        time = datetime.strptime(match[0], "%I:%M %p")
    elif match := re.search(r"\d+ [ap]m", sentence):
        time = datetime.strptime(match[0], "%I %p")
    elif match := re.search(r"noon|midnight", sentence):
        time = datetime(1, 1, 1, 12 if match[0] == "noon" else 0)
    elif match := re.search(r"\d+:\d\d", sentence):
        time = datetime.strptime(match[0], "%H:%M")
    else:
        return None
    return str(time.minute), str(time.hour)


class CronData(unittest.TestCase):
    def test_regenerated_byte_for_byte(self):
        with tempfile.TemporaryDirectory() as scratch:
            with mock.patch("sys.argv", ["make_data.py", scratch]):
                make_data.main()
            for split in SPLITS:
                name = f"{split}.jsonl"
                self.assertEqual(Path(scratch, name).read_bytes(), (CRON / name).read_bytes(), name)

    def test_times_of_day(self):
        timed = 0
        for split in SPLITS:
            for sentence, line in read(split):
                if re.search("minute|hour", sentence):
                    continue
                timed += 1
                self.assertEqual(tuple(line.split()[:2]), time_of_day(sentence), sentence)
        self.assertGreater(timed, 900)

    def test_days_and_months(self):
        # Python counts Monday as 0, cron Sunday.
        days = {name: str((index + 1) % 7) for index, name in enumerate(calendar.day_name)}
        months = {name: str(index) for index, name in enumerate(calendar.month_name) if name}
        for split in SPLITS:
            for sentence, line in read(split):
                _, _, date, month, weekday = line.split()
                named = [days[name] for name in re.findall("|".join(days), sentence)]
                if named:
                    self.assertEqual(re.findall(r"\d", weekday), named, sentence)
                    spans = bool(re.search(r"(to|through) [A-Z]", sentence))
                    self.assertEqual("-" in weekday, spans, sentence)
                elif "weekday" in sentence or "weekend" in sentence:
                    self.assertEqual(weekday, "1-5" if "weekday" in sentence else "0,6", sentence)
                else:
                    self.assertEqual(weekday, "*", sentence)
                named = re.findall("|".join(months), sentence)
                self.assertEqual(month, months[named[0]] if named else "*", sentence)
                numbers = re.findall(r"\d+", re.sub(r"\d+:\d\d|\d+ [ap]m", "", sentence))
                if not re.search("minute|hour", sentence):
                    self.assertEqual(date, numbers[0] if numbers else "*", sentence)

    def test_repetitions(self):
        found = 0
        for split in SPLITS:
            for sentence, line in read(split):
                minute, hour = line.split()[:2]
                if match := re.match(r".*every (\d+) minutes", sentence):
                    self.assertEqual(minute, f"*/{match[1]}", sentence)
                elif match := re.search(r"every (\d+) hours", sentence):
                    self.assertEqual(hour, f"*/{match[1]}", sentence)
                elif match := re.search(r"(\d+) minutes past every hour", sentence):
                    self.assertEqual((minute, hour), (match[1], "*"), sentence)
                if match := re.search(r"(\d+):00 (?:to|and) (\d+):00", sentence):
                    self.assertEqual(hour, f"{match[1]}-{match[2]}", sentence)
                    found += 1
        self.assertGreater(found, 40)

    def test_test_set_is_new(self):
        trained = read("train") + read("valid")
        phrasings = {make_data.phrasing(sentence) for sentence, _ in trained}
        lines = {line for _, line in trained}
        for sentence, line in read("test"):
            self.assertNotIn(make_data.phrasing(sentence), phrasings)
            self.assertNotIn(line, lines)

    def test_phrasing_blanks_what_fills_a_sentence(self):
        for sentence, blanked in {
            "every Monday at 6:30 pm": "every DAY at #:# pm",
            "at 12 am on the 22nd of every month": "at # am on the #th of every month",
            "Tuesdays and Fridays at noon": "DAYs and DAYs at noon",
            "on 8 May at 07:05": "on # MONTH at #:#",
        }.items():
            self.assertEqual(make_data.phrasing(sentence), blanked)

    def test_overlap_is_refused(self):
        splits = {name: list(samples) for name, samples in make_data.make().items()}
        sentence, line = splits["test"][3]
        for stray in ((sentence, "1 2 3 4 5"), ("something else entirely", line)):
            with self.assertRaises(AssertionError):
                make_data.check(splits | {"train": [*splits["train"], stray]})


if __name__ == "__main__":
    unittest.main()
