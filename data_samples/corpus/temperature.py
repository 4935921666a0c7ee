"""Convert temperatures between the scales of Celsius, Fahrenheit and Kelvin.

The functions take and return plain numbers. They refuse temperatures below absolute zero,
because a result that cannot exist is worse than an error message.
"""

ABSOLUTE_ZERO = -273.15  # degrees Celsius


def check(celsius):
    """Return the temperature if it can exist, and raise ValueError if it is below absolute zero."""
    if celsius < ABSOLUTE_ZERO:
        raise ValueError(f"{celsius} degrees Celsius is below absolute zero")
    return celsius


def to_fahrenheit(celsius):
    """Fahrenheit's degree is five ninths of Celsius's, and his zero lies 32 of them lower."""
    return check(celsius) * 9 / 5 + 32


def to_kelvin(celsius):
    """Kelvin's scale has the degrees of Celsius and begins where there is no heat left."""
    return check(celsius) - ABSOLUTE_ZERO
