"""Forty tools, and requests from templates: what calls of tools are measured on.

Every tool is a Python function with types, which refuses what would take it long; every request has one right call.
Fifteen tools are held out: prompts never name them.
"""

from __future__ import annotations

import calendar
import datetime
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Values = Callable[[random.Random], Any]

_WORDS = ("river", "mountain", "window", "garden", "planet", "silver", "music", "letter", "bridge", "candle")


def _number(rng: random.Random) -> int:
    return rng.randint(2, 99)


def _big(rng: random.Random) -> int:
    return rng.randint(100, 999)


def _small(rng: random.Random) -> int:
    return rng.randint(2, 6)


def _word(rng: random.Random) -> str:
    return rng.choice(_WORDS)


def _day(rng: random.Random) -> str:
    return f"{rng.randint(1990, 2030)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def _year(rng: random.Random) -> int:
    return rng.randint(1900, 2100)


@dataclass(frozen=True)
class Asked:
    """A tool and how it is asked for.

    Args:
        function: the tool.
        template: of a request, with the arguments' names in braces.
        values: how each argument is drawn.
        held_out: whether prompts never name it.
    """

    function: Callable[..., Any]
    template: str
    values: dict[str, Values]
    held_out: bool

    @property
    def name(self) -> str:
        return self.function.__name__

    def request(self, rng: random.Random) -> Request:
        """One request."""
        arguments = {name: draw(rng) for name, draw in self.values.items()}
        return Request(self.template.format(**arguments), self.name, arguments, self.held_out)


@dataclass(frozen=True)
class Request:
    """What is asked, and the right call."""

    text: str
    tool: str
    arguments: dict[str, Any]
    held_out: bool


SUITE: list[Asked] = []


def _asked(template: str, held_out: bool = False, **values: Values) -> Callable[[Callable[..., Any]], Any]:
    def make(function: Callable[..., Any]) -> Callable[..., Any]:
        SUITE.append(Asked(function, template, values, held_out))
        return function

    return make


# -- numbers ------------------------------------------------------------------------------------------------------


@_asked("What is {a} plus {b}?", a=_number, b=_number)
def add(a: float, b: float) -> float:
    """The sum."""
    return a + b


@_asked("Subtract {b} from {a}.", a=_big, b=_number)
def subtract(a: float, b: float) -> float:
    """The difference."""
    return a - b


@_asked("What is {a} times {b}?", a=_number, b=_number)
def multiply(a: float, b: float) -> float:
    """The product."""
    return a * b


@_asked("Divide {a} by {b}.", a=_big, b=_small)
def divide(a: float, b: float) -> float:
    """The quotient."""
    return a / b


@_asked("What is {base} to the power of {exponent}?", base=_small, exponent=_small)
def power(base: float, exponent: float) -> float:
    """A power."""
    return float(base**exponent)


@_asked("What is the square root of {number}?", held_out=True, number=_big)
def square_root(number: float) -> float:
    """The square root."""
    return math.sqrt(number)


@_asked("What is the remainder of {a} divided by {b}?", held_out=True, a=_big, b=_small)
def remainder(a: int, b: int) -> int:
    """The remainder."""
    return a % b


@_asked("What is the factorial of {number}?", held_out=True, number=_small)
def factorial(number: int) -> int:
    """The factorial."""
    if number > 500:
        raise ValueError(f"{number} is above 500")
    return math.factorial(number)


@_asked("What is the greatest common divisor of {a} and {b}?", held_out=True, a=_big, b=_big)
def greatest_common_divisor(a: int, b: int) -> int:
    """The greatest common divisor."""
    return math.gcd(a, b)


@_asked("What is the least common multiple of {a} and {b}?", a=_number, b=_number)
def least_common_multiple(a: int, b: int) -> int:
    """The least common multiple."""
    return math.lcm(a, b)


@_asked("Is {number} a prime number?", held_out=True, number=_big)
def is_prime(number: int) -> bool:
    """Whether a number is prime."""
    if number > 10**10:
        raise ValueError(f"{number} is above 10 billion")
    return number > 1 and all(number % d for d in range(2, math.isqrt(number) + 1))


@_asked("Round {number} to the nearest multiple of {step}.", number=_big, step=_small)
def round_to_multiple(number: float, step: float) -> float:
    """The nearest multiple."""
    return round(number / step) * step


@_asked("What is {percent} percent of {number}?", percent=_number, number=_big)
def percentage_of(percent: float, number: float) -> float:
    """A percentage."""
    return percent * number / 100


@_asked("Convert {number} to binary.", held_out=True, number=_number)
def to_binary(number: int) -> str:
    """The binary digits."""
    return f"{number:b}"


@_asked("Write {number} as a Roman numeral.", number=_number)
def to_roman_numeral(number: int) -> str:
    """The Roman numeral."""
    if not 0 < number < 4000:
        raise ValueError(f"{number} has no Roman numeral")
    signs = (
        (1000, "M"),
        (900, "CM"),
        (500, "D"),
        (400, "CD"),
        (100, "C"),
        (90, "XC"),
        (50, "L"),
        (40, "XL"),
        (10, "X"),
        (9, "IX"),
        (5, "V"),
        (4, "IV"),
        (1, "I"),
    )
    found = ""
    for value, sign in signs:
        found += sign * (number // value)
        number %= value
    return found


# -- text ---------------------------------------------------------------------------------------------------------


@_asked("Write the word {text} in capital letters.", text=_word)
def to_upper_case(text: str) -> str:
    """Capital letters."""
    return text.upper()


@_asked("Reverse the word {text}.", held_out=True, text=_word)
def reverse_text(text: str) -> str:
    """The text backwards."""
    return text[::-1]


@_asked("How many vowels are in the word {text}?", held_out=True, text=_word)
def count_vowels(text: str) -> int:
    """The number of vowels."""
    return sum(letter in "aeiou" for letter in text)


@_asked("How long is the word {text}?", text=_word)
def text_length(text: str) -> int:
    """The number of characters."""
    return len(text)


@_asked("Repeat the word {text} {times} times.", text=_word, times=_small)
def repeat_text(text: str, times: int) -> str:
    """The text several times."""
    if times > 1000:
        raise ValueError(f"{times} is above 1000")
    return " ".join([text] * times)


@_asked("Is the word {text} a palindrome?", held_out=True, text=_word)
def is_palindrome(text: str) -> bool:
    """Whether a text reads the same backwards."""
    return text == text[::-1]


@_asked("Replace the word {old} by {new} in the text.", old=_word, new=_word)
def replace_word(old: str, new: str) -> str:
    """One word for another."""
    return " ".join(new if word == old else word for word in _WORDS)


@_asked("Sort the letters of the word {text}.", text=_word)
def sort_letters(text: str) -> str:
    """The letters in order."""
    return "".join(sorted(text))


@_asked("What is the first letter of the word {text}?", text=_word)
def first_letter(text: str) -> str:
    """The first letter."""
    return text[0]


@_asked("Encode the word {text} with a Caesar shift of {shift}.", text=_word, shift=_small)
def caesar_encode(text: str, shift: int) -> str:
    """Every letter so many places further."""
    return "".join(chr((ord(letter) - 97 + shift) % 26 + 97) for letter in text)


# -- days ---------------------------------------------------------------------------------------------------------


@_asked("Which day of the week is {date}?", held_out=True, date=_day)
def day_of_week(date: str) -> str:
    """The day of the week."""
    return f"{datetime.date.fromisoformat(date):%A}"


@_asked("Is the year {year} a leap year?", held_out=True, year=_year)
def is_leap_year(year: int) -> bool:
    """Whether a year has 366 days."""
    return calendar.isleap(year)


@_asked("How many days are between {start} and {end}?", start=_day, end=_day)
def days_between(start: str, end: str) -> int:
    """The number of days."""
    return (datetime.date.fromisoformat(end) - datetime.date.fromisoformat(start)).days


@_asked("Which date is {days} days after {date}?", date=_day, days=_number)
def add_days(date: str, days: int) -> str:
    """The date so many days later."""
    return (datetime.date.fromisoformat(date) + datetime.timedelta(days)).isoformat()


@_asked("How many days has month {month} of the year {year}?", month=_small, year=_year)
def days_in_month(month: int, year: int) -> int:
    """The number of days."""
    return calendar.monthrange(year, month)[1]


@_asked("How many minutes are {hours} hours?", hours=_number)
def hours_to_minutes(hours: float) -> float:
    """Minutes."""
    return hours * 60


# -- units --------------------------------------------------------------------------------------------------------


@_asked("Convert {degrees} degrees Celsius to Fahrenheit.", degrees=_number)
def celsius_to_fahrenheit(degrees: float) -> float:
    """Degrees Fahrenheit."""
    return degrees * 9 / 5 + 32


@_asked("Convert {degrees} degrees Fahrenheit to Celsius.", held_out=True, degrees=_number)
def fahrenheit_to_celsius(degrees: float) -> float:
    """Degrees Celsius."""
    return (degrees - 32) * 5 / 9


@_asked("Convert {miles} miles to kilometers.", held_out=True, miles=_number)
def miles_to_kilometers(miles: float) -> float:
    """Kilometres."""
    return miles * 1.609344


@_asked("Convert {kilograms} kilograms to pounds.", held_out=True, kilograms=_number)
def kilograms_to_pounds(kilograms: float) -> float:
    """Pounds."""
    return kilograms * 2.20462262


@_asked("Convert {inches} inches to centimeters.", inches=_number)
def inches_to_centimeters(inches: float) -> float:
    """Centimetres."""
    return inches * 2.54


@_asked("Convert {liters} liters to gallons.", liters=_number)
def liters_to_gallons(liters: float) -> float:
    """Gallons of the United States."""
    return liters / 3.785411784


@_asked("What is the area of a circle with radius {radius}?", held_out=True, radius=_small)
def circle_area(radius: float) -> float:
    """The area."""
    return math.pi * radius**2


@_asked("What is the area of a rectangle of {width} by {height}?", width=_number, height=_number)
def rectangle_area(width: float, height: float) -> float:
    """The area."""
    return width * height


def _unit(rng: random.Random) -> str:
    return rng.choice(("bits", "bytes", "kilobytes"))


@_asked("How many {unit} are {megabytes} megabytes?", megabytes=_number, unit=_unit)
def convert_megabytes(megabytes: float, unit: Literal["bits", "bytes", "kilobytes"]) -> float:
    """In another unit."""
    return megabytes * {"bits": 8_000_000, "bytes": 1_000_000, "kilobytes": 1000}[unit]


def requests(count: int, seed: int = 0) -> list[Request]:
    """So many requests, held-out tools and others in turn."""
    rng = random.Random(seed)
    groups = [[asked for asked in SUITE if asked.held_out == held_out] for held_out in (True, False)]
    for group in groups:
        rng.shuffle(group)
    return [groups[n % 2][n // 2 % len(groups[n % 2])].request(rng) for n in range(count)]
