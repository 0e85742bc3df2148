"Brokers on this machine: servers that speak the protocols of Alpaca and of Binance spot, keep real orders, and fail as they are told."
import hashlib
import hmac
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, parse_qsl, urlsplit

import local_server
from local_server import LocalServer, gone

KEY, SECRET = "PKTESTKEY/0123456789+ab", "s3cret/of.the+account==42"
PRICES = {"AAPL": 180.0, "BTC/USD": 60_000.0, "BTCUSDT": 60_000.0, "ETHUSDT": 3_000.0}


@dataclass
class Order:
    "An order as the market has it."
    number: int
    client: str
    symbol: str
    side: str
    type: str
    quantity: float
    price: float | None
    status: str = "new"  # new, partial, filled, canceled, rejected, or any odd word
    filled: float = 0.0
    average: float | None = None
    extra: dict = field(default_factory=dict)

    @property
    def done(self) -> bool: return self.status in ("filled", "canceled", "rejected")

    def fill(self, quantity: float, price: float) -> None:
        "Fill a further part at a price."
        self.average = ((self.average or 0.0) * self.filled + quantity * price) / (self.filled + quantity)
        self.filled += quantity
        self.status = "filled" if self.filled >= self.quantity else "partial"


@dataclass
class Fault:
    "What goes wrong with the next matching requests."
    pattern: str  # of "METHOD /path"
    act: Callable[["Handler"], None]
    heard: bool  # whether the order book takes the request before
    times: int


class BrokerServer(LocalServer):
    "An account, its order book, and what is to go wrong."
    def __init__(self):
        super().__init__()
        self.orders: dict[str, Order] = {}
        self.cash, self.positions, self.status, self.echo = 100_000.0, {}, "ACTIVE", ""
        self.asked: list[str] = []
        self.bodies: list[dict] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()

    def posts(self) -> int: return sum(line.startswith("POST ") for line in self.asked)

    def fail(self, pattern: str, act: Callable[["Handler"], None], heard: bool = False, times: int = 1) -> None:
        "Let the next requests that match go wrong."
        self.faults.append(Fault(pattern, act, heard, times))

    def fault(self, line: str) -> Fault | None:
        "The fault that this request meets; each is used up."
        for fault in self.faults:
            if fault.times and re.match(fault.pattern, line):
                fault.times -= 1
                return fault
        return None

    def add(self, client: str, symbol: str, side: str, type: str, quantity: float, price: float | None = None, **extra) -> Order:
        "Put an order into the book; a market order fills at once."
        order = Order(len(self.orders) + 1, client, symbol, side, type, quantity, price, extra=extra)
        self.orders[client] = order
        if type == "market": order.fill(quantity, PRICES[symbol])
        return order


class Handler(local_server.Handler):
    "Reads a request, lets it go wrong if it is to, and answers."
    def serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length).decode()
        path, line = urlsplit(self.path).path, f"{self.command} {urlsplit(self.path).path}"
        self.query = dict(parse_qsl(urlsplit(self.path).query))
        with self.server.lock:
            self.server.asked.append(line)
            fault = self.server.fault(line)
            answer = None if fault and not fault.heard else self.answer(path)
        if fault: return fault.act(self)
        self.reply(*answer)

    do_GET = do_POST = do_DELETE = serve


# --- what can go wrong -----------------------------------------------------------------------------------------------

def reset(handler: Handler) -> None:
    "Reset the connection, as a broken router does."
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone(handler)


def hang(handler: Handler) -> None: time.sleep(1.5)


# --- Alpaca ----------------------------------------------------------------------------------------------------------

class AlpacaHandler(Handler):
    WORDS = {"partial": "partially_filled"}

    def answer(self, path: str) -> tuple[int, object]:
        if self.headers["APCA-API-KEY-ID"] != KEY or self.headers["APCA-API-SECRET-KEY"] != SECRET:
            return 401, {"code": 40110000, "message": f"request is not authorized {self.server.echo}"}
        if path == "/v2/account": return 200, self.account()
        if path == "/v2/positions": return 200, [{"symbol": name.replace("/", ""), "qty": str(units), "side": "long" if units > 0 else "short"}
                                                 for name, units in self.server.positions.items()]
        if path == "/v2/orders:by_client_order_id": return self.found(self.query["client_order_id"])
        if path == "/v2/orders" and self.command == "POST": return self.placed(json.loads(self.body))
        if path == "/v2/orders": return 200, self.listed()
        if path.startswith("/v2/orders/") and self.command == "DELETE": return self.cancelled(path.rpartition("/")[2])
        return 404, {"message": "endpoint not found"}

    def account(self) -> dict:
        equity = self.server.cash + sum(units * PRICES[name] for name, units in self.server.positions.items())
        return {"id": "a-1", "status": self.server.status, "currency": "USD", "cash": f"{self.server.cash:.2f}", "equity": f"{equity:.2f}",
                "buying_power": f"{self.server.cash:.2f}", "trading_blocked": "blocked" in self.server.echo, "account_blocked": False, "trade_suspended_by_user": False}

    def shown(self, order: Order) -> dict:
        return {"id": f"0000-{order.number}", "client_order_id": order.client, "symbol": order.symbol, "side": order.side, "type": order.type,
                "qty": str(order.quantity), "filled_qty": str(order.filled), "filled_avg_price": None if order.average is None else f"{order.average:.6f}",
                "status": self.WORDS.get(order.status, order.status), "submitted_at": f"2024-01-02T00:00:00.{order.number:06d}Z",
                "limit_price": None, "stop_price": None, **order.extra}

    def found(self, client: str) -> tuple[int, object]:
        if client in self.server.orders: return 200, self.shown(self.server.orders[client])
        return 404, {"code": 40410000, "message": f"order not found for {client}"}

    def placed(self, order: dict) -> tuple[int, object]:
        self.server.bodies.append(order)
        price = order.get("limit_price") or order.get("stop_price")
        cost = float(order["qty"]) * float(price or PRICES.get(order["symbol"], 1))
        if order["symbol"] not in PRICES: return 422, {"code": 42210000, "message": f"asset \"{order['symbol']}\" not found"}
        if order["client_order_id"] in self.server.orders: return 422, {"code": 40010001, "message": "client_order_id must be unique"}
        if order["side"] == "buy" and cost > self.server.cash:
            return 403, {"code": 40310000, "message": f"insufficient buying power {self.server.echo}", "buying_power": f"{self.server.cash:.2f}", "cost_basis": f"{cost:.2f}"}
        kept = {name: order[name] for name in ("limit_price", "stop_price", "time_in_force") if name in order}
        return 200, self.shown(self.server.add(order["client_order_id"], order["symbol"], order["side"], order["type"], float(order["qty"]), price and float(price), **kept))

    def listed(self) -> list[dict]:
        found = sorted((order for order in self.server.orders.values() if not order.done), key=lambda order: -order.number)
        shown = [self.shown(order) for order in found]
        return [order for order in shown if order["submitted_at"] < self.query.get("until", "9")][:int(self.query.get("limit", 50))]

    def cancelled(self, number: str) -> tuple[int, object]:
        order = next((order for order in self.server.orders.values() if f"0000-{order.number}" == number), None)
        if order is None: return 404, {"code": 40410000, "message": f"order not found for {number}"}
        if order.done: return 422, {"code": 42210000, "message": f"order is already in \"{order.status}\" state"}
        order.status = "canceled"
        return 204, None


class AlpacaServer(BrokerServer):
    handler = AlpacaHandler


# --- Binance spot ----------------------------------------------------------------------------------------------------

def _market(base: str) -> dict:
    filters = [{"filterType": "PRICE_FILTER", "minPrice": "0.01", "maxPrice": "1000000", "tickSize": "0.01"}, {"filterType": "NOTIONAL", "minNotional": "5"},
               {"filterType": "LOT_SIZE", "minQty": "0.0001", "maxQty": "9000", "stepSize": "0.0001"}]
    return {"symbol": f"{base}USDT", "status": "TRADING", "baseAsset": base, "baseAssetPrecision": 8, "quoteAsset": "USDT", "quotePrecision": 8, "quoteAssetPrecision": 8,
            "orderTypes": ["LIMIT", "LIMIT_MAKER", "MARKET", "STOP_LOSS", "STOP_LOSS_LIMIT"], "isSpotTradingAllowed": True, "permissions": ["SPOT"], "filters": filters}


class BinanceHandler(Handler):
    WORDS = {"new": "NEW", "partial": "PARTIALLY_FILLED", "filled": "FILLED", "canceled": "CANCELED", "rejected": "REJECTED"}

    def answer(self, path: str) -> tuple[int, object]:
        if path == "/api/v3/exchangeInfo": return 200, {"timezone": "UTC", "symbols": [_market("BTC"), _market("ETH"), {**_market("BTC"), "symbol": "BTCEUR", "quoteAsset": "EUR"}]}
        if path == "/api/v3/ticker/24hr": return 200, {"symbol": self.query["symbol"], "lastPrice": str(PRICES[self.query["symbol"]]), "closeTime": 1700000000000}
        signed = urlsplit(self.path).query if self.command in ("GET", "DELETE") else self.body
        text, _, signature = signed.rpartition("&signature=")
        given = {name: value[0] for name, value in parse_qs(text).items()}
        if self.headers["X-MBX-APIKEY"] != KEY: return 401, {"code": -2014, "msg": f"API-key format invalid. {self.server.echo}"}
        if hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).hexdigest() != signature: return 400, {"code": -1022, "msg": "Signature for this request is not valid."}
        if path == "/sapi/v1/capital/config/getall": return 200, []
        if path == "/api/v3/account": return 200, self.account()
        if path == "/api/v3/openOrders": return 200, [self.shown(order) for order in self.server.orders.values() if not order.done and order.symbol == given["symbol"]]
        if path == "/api/v3/order": return {"POST": self.placed, "GET": self.found, "DELETE": self.cancelled}[self.command](given)
        return 404, "<html>no such page</html>"

    def account(self) -> dict:
        held = {"USDT": self.server.cash, **{name.removesuffix("USDT"): units for name, units in self.server.positions.items()}}
        balances = [{"asset": name, "free": str(units), "locked": "0"} for name, units in held.items()]
        return {"canTrade": self.server.status.startswith("ACTIVE"), "accountType": "SPOT", "updateTime": 1700000000000, "balances": balances}

    def shown(self, order: Order) -> dict:
        return {"symbol": order.symbol, "orderId": order.number, "clientOrderId": order.client, "price": str(order.price or 0), "origQty": f"{order.quantity:.8f}",
                "executedQty": f"{order.filled:.8f}", "cummulativeQuoteQty": f"{order.filled * (order.average or 0):.8f}", "status": self.WORDS.get(order.status, order.status),
                "timeInForce": "GTC", "type": order.type.upper(), "side": order.side.upper(), "time": 1700000000000 + order.number, "fills": [], **order.extra}

    def placed(self, given: dict) -> tuple[int, object]:
        self.server.bodies.append(given)
        quantity, price = float(given["quantity"]), float(given.get("price", 0)) or None
        if given["side"] == "BUY" and quantity * (price or PRICES[given["symbol"]]) > self.server.cash:
            return 400, {"code": -2010, "msg": "Account has insufficient balance for requested action."}
        # Like the real one, it takes an id again once the first order is done.
        if given["newClientOrderId"] in self.server.orders and not self.server.orders[given["newClientOrderId"]].done:
            return 400, {"code": -2010, "msg": "Duplicate order sent."}
        extra = {"stopPrice": given["stopPrice"]} if "stopPrice" in given else {}
        return 200, self.shown(self.server.add(given["newClientOrderId"], given["symbol"], given["side"].lower(), given["type"].lower(), quantity, price, **extra))

    def found(self, given: dict) -> tuple[int, object]:
        order = self.server.orders.get(given.get("origClientOrderId"))
        if order is None or order.symbol != given["symbol"]: return 400, {"code": -2013, "msg": "Order does not exist."}
        return 200, self.shown(order)

    def cancelled(self, given: dict) -> tuple[int, object]:
        order = next((order for order in self.server.orders.values() if str(order.number) == given.get("orderId") and not order.done), None)
        if order is None: return 400, {"code": -2011, "msg": "Unknown order sent."}
        order.status = "canceled"
        return 200, self.shown(order)


class BinanceServer(BrokerServer):
    handler = BinanceHandler
