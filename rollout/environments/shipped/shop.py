"""A shop with a cart: what the model did before decides what comes next, and what it bought is its reward."""

from __future__ import annotations

import json

_PRICES = {
    "apple": 3, "bread": 12, "butter": 15, "cheese": 28, "coffee": 45, "egg": 2, "flour": 9, "honey": 33, "milk": 8,
    "pear": 4, "rice": 11, "tea": 21,
}  # fmt: skip
_STOCK = 20


class Shop:
    """A row's `ground_truth` is what has to be bought, as JSON: {"apple": 2, "tea": 1}. Buying anything else, or
    leaving without paying, gives 0."""

    def __init__(self) -> None:
        self._wanted: dict[str, int] = {}
        self._cart: dict[str, int] = {}
        self.done = False  # paid: the episode is over

    def reset(self, ground_truth: str | None = None) -> None:
        """Raises ValueError for a ground truth that is no order the shop could fill."""
        try:
            read = json.loads(ground_truth or "")
        except json.JSONDecodeError as error:
            raise ValueError(f'ground_truth={ground_truth!r} is not JSON; give one like {{"apple": 2}}') from error
        if not isinstance(read, dict) or not read:
            raise ValueError(f'ground_truth={ground_truth!r} is no order; give one like {{"apple": 2}}')
        for name, number in read.items():
            if name not in _PRICES or type(number) is not int or not 0 < number <= _STOCK:
                raise ValueError(f"ground_truth asks for {number} of {name}; there is {_STOCK} of {', '.join(_PRICES)}")
        self._wanted = dict(read)

    def products(self) -> str:
        """List what there is, with prices in cents and how many are in stock."""
        return "\n".join(f"{name}: {price} cents, {self._left(name)} left" for name, price in _PRICES.items())

    def add(self, product: str, number: int) -> str:
        """Put something into the cart.

        Args:
            product: its name
            number: how many
        """
        if product not in _PRICES:
            raise ValueError(f"there is no {product}")
        if type(number) is not int or not 0 < number <= self._left(product):
            raise ValueError(f"{number} cannot be added; {self._left(product)} are left")
        self._cart[product] = self._cart.get(product, 0) + number
        return self.cart()

    def remove(self, product: str) -> str:
        """Take a product out of the cart, all of it.

        Args:
            product: its name
        """
        if product not in self._cart:
            raise ValueError(f"there is no {product} in the cart")
        del self._cart[product]
        return self.cart()

    def cart(self) -> str:
        """Show what is in the cart and what it costs."""
        listed = ", ".join(f"{number} {name}" for name, number in sorted(self._cart.items())) or "nothing"
        return f"in the cart: {listed}; total {self._total()} cents"

    def pay(self) -> str:
        """Pay for what is in the cart and leave the shop."""
        if not self._cart:
            raise ValueError("the cart is empty")
        self.done = True
        return f"paid {self._total()} cents"

    def get_reward(self) -> float:
        """1 when exactly what was wanted has been paid for."""
        return float(self.done and self._cart == self._wanted)

    def _left(self, product: str) -> int:
        return _STOCK - self._cart.get(product, 0)

    def _total(self) -> int:
        return sum(_PRICES[name] * number for name, number in self._cart.items())
