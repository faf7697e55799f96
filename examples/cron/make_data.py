#!/usr/bin/env python3
"""Writes the data of the cron example: English schedules and the cron lines that mean them.

    "every weekday at 6:30"  ->  30 6 * * 1-5

A sample is a chat of three turns (system, user, assistant). Its sentence is a frame ("{day}s at
{time}") with a time in one of several styles; hours, minutes, days and months come from decks that
are dealt out before they are shuffled again, so that a small train set covers them all evenly. The
short system message stands where the chat template would put a longer one of its own.

What the test set may not share with train and valid is asserted before anything is written:
  - its phrasings: no sentence of it, numbers, days and months blanked, occurs there;
  - its answers: no cron line of it occurs there.

The same seed gives the same bytes: nothing here depends on hashing, locale or time.

usage: make_data.py [DIRECTORY]     (default: the directory of this file)
"""

import json
import pathlib
import random
import re
import sys

SEED = 7
SIZES = {"train": 1074, "valid": 60, "test": 120}
SYSTEM = "cron"

DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"]
MONTHS = [
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
]
DAYS_IN_MONTH = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]

# How {time} is written; the weights are shares.
TIME_STYLES = {"24h": 5, "h:mm am/pm": 10, "h am/pm": 10, "noon": 3}

# Frames by what they say. The first list is for all splits; the second is for test alone.
FRAMES = {
    "day": (
        ["at {time}", "{time}", "daily at {time}", "every day at {time}", "{time} every day"],
        ["each day at {time}", "at {time} every day"],
    ),
    "weekdays": (
        [
            "every weekday at {time}",
            "each weekday at {time}",
            "weekdays at {time}",
            "at {time} on weekdays",
        ],
        ["on weekdays at {time}", "at {time} each weekday"],
    ),
    "weekends": (
        ["weekends at {time}", "on weekends at {time}", "at {time} every weekend"],
        ["every weekend at {time}", "at {time} on weekends"],
    ),
    "weekly": (
        [
            "every {day} at {time}",
            "each {day} at {time}",
            "{day}s at {time}",
            "at {time} on {day}s",
        ],
        ["on {day}s at {time}", "at {time} every {day}"],
    ),
    "two days": (
        [
            "{day} and {day2} at {time}",
            "at {time} on {day}s and {day2}s",
            "every {day} and {day2} at {time}",
        ],
        ["{day}s and {day2}s at {time}", "at {time} every {day} and {day2}"],
    ),
    "day range": (
        [
            "{day} to {later_day} at {time}",
            "{day} through {later_day} at {time}",
            "at {time} from {day} to {later_day}",
        ],
        ["from {day} to {later_day} at {time}", "at {time} {day} through {later_day}"],
    ),
    "monthly": (
        [
            "on the {nth} of every month at {time}",
            "monthly on the {nth} at {time}",
            "at {time} on the {nth} of the month",
            "each month on the {nth} at {time}",
        ],
        ["at {time} on the {nth} of every month", "on the {nth} of each month at {time}"],
    ),
    "yearly": (
        [
            "every {month} {date} at {time}",
            "on {date} {month} at {time}",
            "every year on {month} {date} at {time}",
            "at {time} on {month} {date}",
        ],
        ["on {month} {date} at {time}", "each year on {month} {date} at {time}"],
    ),
    "in a month": (
        ["every day in {month} at {time}", "in {month} daily at {time}", "at {time} in {month}"],
        ["daily in {month} at {time}", "in {month} at {time}"],
    ),
    "minutes": (
        [
            "every {n} minutes on {day}s",
            "every {n} minutes on weekdays",
            "every {n} minutes in {month}",
            "every {n} minutes from {hour} to {later_hour}",
            "between {hour} and {later_hour} every {n} minutes",
        ],
        ["every {n} minutes on weekends", "every {n} minutes between {hour} and {later_hour}"],
    ),
    "hours": (
        [
            "every hour from {hour} to {later_hour}",
            "hourly between {hour} and {later_hour}",
            "hourly from {hour} to {later_hour} on weekdays",
            "every {k} hours on {day}s",
            "every {k} hours on weekends",
            "every {k} hours at minute {minute}",
            "{minute} minutes past every hour",
            "{minute} minutes past every hour on {day}s",
        ],
        [
            "every hour between {hour} and {later_hour}",
            "every hour from {hour} to {later_hour} on weekdays",
            "{minute} minutes past every hour on weekends",
        ],
    ),
}
# Shares. The short sentences of "day" teach the times of day for the fewest tokens.
KINDS = {
    **{"day": 18, "weekdays": 8, "weekends": 6, "weekly": 12, "two days": 9, "day range": 8},
    **{"monthly": 10, "yearly": 12, "in a month": 8, "minutes": 9, "hours": 9},
}
# The one that the program's documentation quotes; with its style it is for test alone.
SHOWN = ("every weekday at {time}", "24h", "every weekday at 6:30", "30 6 * * 1-5")


class Deck:
    """Deals its cards in random order, all of them before any comes again."""

    def __init__(self, rng, cards):
        self.rng = rng
        self.cards = list(cards)
        self.left = []

    def deal(self):
        if not self.left:
            self.left = self.rng.sample(self.cards, len(self.cards))
        return self.left.pop()


def weighted(weights):
    return [name for name, weight in weights.items() for _ in range(weight)]


def ordinal(number):
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}th" if number in (11, 12, 13) else f"{number}{suffix}"


def twelve_hour(hour):
    return (hour + 11) % 12 + 1, "am" if hour < 12 else "pm"


class Grammar:
    """Draws samples of one split."""

    def __init__(self, rng):
        self.kinds = Deck(rng, weighted(KINDS))
        self.styles = Deck(rng, weighted(TIME_STYLES))
        self.rng = rng
        # Most am hours stand in the cron line as they are; those dealt more often do not, 12 am
        # least of all.
        twelve_hours = Deck(rng, [*range(24), *range(12, 24), 22, 23, 12, 12, *[0] * 7])
        self.hours = {
            "24h": Deck(rng, range(24)),
            "h:mm am/pm": twelve_hours,
            "h am/pm": twelve_hours,
            "noon": Deck(rng, [0, 12]),
        }
        # More than half of the minutes are round, as in life; all of them occur.
        round_minutes = [0, 15, 30, 45] * 5 + [5, 10, 20, 25, 35, 40, 50, 55] * 3
        self.minutes = Deck(rng, [*range(60), *round_minutes])
        self.days = Deck(rng, range(7))
        self.months = Deck(rng, range(1, 13))
        self.dates = Deck(rng, range(1, 32))
        self.minute_steps = Deck(rng, [2, 3, 4, 5, 6, 10, 12, 15, 20, 30])
        self.hour_steps = Deck(rng, [2, 3, 4, 6, 8, 12])
        self.early_hours = Deck(rng, range(5, 15))

    def time(self, style):
        """(words, minute, hour)"""
        hour = self.hours[style].deal()
        minute = self.minutes.deal() if ":" in style or style == "24h" else 0
        twelve, half = twelve_hour(hour)
        if style == "24h":
            padded = hour < 10 and self.rng.randrange(2)
            return f"{hour:02}:{minute:02}" if padded else f"{hour}:{minute:02}", minute, hour
        if style == "h:mm am/pm":
            return f"{twelve}:{minute:02} {half}", minute, hour
        if style == "h am/pm":
            return f"{twelve} {half}", minute, hour
        return "noon" if hour else "midnight", minute, hour

    def distinct(self, deck, count):
        """That many different cards, in ascending order."""
        cards = set()
        while len(cards) < count:
            cards.add(deck.deal())
        return sorted(cards)

    def sample(self, frame, style):
        """(sentence, cron line) for a frame, its {time} in that style."""
        slots = {}
        minute, hour, date, month, days = "*", "*", "*", "*", "*"
        if "{time}" in frame:
            slots["time"], minute, hour = self.time(style)
        if "{later_hour}" in frame:
            first = self.early_hours.deal()
            last = self.rng.randrange(first + 2, min(first + 11, 24))
            hour = f"{first}-{last}"
            slots |= {"hour": f"{first}:00", "later_hour": f"{last}:00"}
            minute = "0"
        if "{minute}" in frame:
            slots["minute"] = minute = self.minutes.deal() or 1
        if "{n}" in frame:
            slots["n"] = self.minute_steps.deal()
            minute = f"*/{slots['n']}"
        if "{k}" in frame:
            slots["k"] = self.hour_steps.deal()
            hour = f"*/{slots['k']}"
            minute = slots.get("minute", 0)
        if "{later_day}" in frame:
            first, last = 0, 0
            while not 2 <= last - first <= 5:
                first, last = self.distinct(self.days, 2)
            slots["day"], slots["later_day"] = DAYS[first], DAYS[last]
            days = f"{first}-{last}"
        elif "{day}" in frame:
            chosen = self.distinct(self.days, 2 if "{day2}" in frame else 1)
            slots |= zip(["day", "day2"], [DAYS[day] for day in chosen])
            days = ",".join(map(str, chosen))
        elif "weekday" in frame:
            days = "1-5"
        elif "weekend" in frame:
            days = "0,6"
        if "{nth}" in frame:
            date = self.dates.deal()
            slots["nth"] = ordinal(date)
        if "{month}" in frame:
            month = self.months.deal()
            slots["month"] = MONTHS[month - 1]
        if "{date}" in frame:
            date = 32
            while date > DAYS_IN_MONTH[month - 1]:
                date = self.dates.deal()
            slots["date"] = date
        return frame.format(**slots), f"{minute} {hour} {date} {month} {days}"


def phrasing(sentence):
    """The sentence without what fills it: "every # minutes on DAYs"."""
    sentence = re.sub(r"\d+(st|nd|rd|th)\b", "#th", sentence)
    sentence = re.sub(r"\d+(:\d+)?", lambda m: "#:#" if m[1] else "#", sentence)
    sentence = re.sub("|".join(DAYS), "DAY", sentence)
    return re.sub("|".join(MONTHS), "MONTH", sentence)


def held_out_pairs(rng):
    """For each frame with a time that all splits use, one style which it takes in test alone."""
    styles = Deck(rng, TIME_STYLES)
    pairs = {}
    for shared, _ in FRAMES.values():
        for frame in shared:
            if "{time}" in frame:
                pairs[frame] = styles.deal()
    pairs[SHOWN[0]] = SHOWN[1]
    return pairs


def draw(grammar, rng, size, test, held_out, taken):
    """`size` samples with different sentences, none with a cron line that is in `taken`."""
    samples = {}
    if test:
        samples[SHOWN[2]] = SHOWN[3]
    decks = {}
    while len(samples) < size:
        kind = grammar.kinds.deal()
        # Half of test are new frames; the other half are known frames with a style new to them.
        new_frame = test and ("{time}" not in FRAMES[kind][0][0] or rng.randrange(2))
        key = kind, new_frame
        if key not in decks:
            decks[key] = Deck(rng, FRAMES[kind][1 if new_frame else 0])
        frame = decks[key].deal()
        if new_frame or "{time}" not in frame:
            style = grammar.styles.deal()
        elif test:
            style = held_out[frame]
        else:
            style = grammar.styles.deal()
            while style == held_out[frame]:
                style = grammar.styles.deal()
        sentence, line = grammar.sample(frame, style)
        if line not in taken and sentence not in samples:
            samples[sentence] = line
    return list(samples.items())


def check(splits):
    for name in ("train", "valid"):
        for what, part in (("phrasing", lambda s: phrasing(s[0])), ("cron line", lambda s: s[1])):
            shared = set(map(part, splits[name])) & set(map(part, splits["test"]))
            assert not shared, f"{what} of test occurs in {name}: {sorted(shared)[:3]}"


def make():
    """{split: [(sentence, cron line)]}"""
    rng = random.Random(SEED)
    held_out = held_out_pairs(rng)
    splits = {}
    taken = set()
    # Test first, so that the others make way for it.
    for name in ("test", "train", "valid"):
        samples = draw(Grammar(rng), rng, SIZES[name], name == "test", held_out, taken)
        splits[name] = samples
        taken |= {line for _, line in samples}
    check(splits)
    return splits


def main():
    directory = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    directory.mkdir(parents=True, exist_ok=True)
    for name, samples in make().items():
        with open(directory / f"{name}.jsonl", "w", encoding="utf-8", newline="\n") as file:
            for sentence, line in samples:
                roles = {"system": SYSTEM, "user": sentence, "assistant": line}
                messages = [{"role": role, "content": text} for role, text in roles.items()]
                file.write(json.dumps({"messages": messages}) + "\n")


if __name__ == "__main__":
    main()
