"""What the demo model knows: its categories, the words that give one away, and the words that do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence


@dataclass(frozen=True)
class Category:
    """One category.

    Attributes:
        hints: words of a vendor's name that give the category away, in capitals.
        endings: the same, as the end of a word: `NORDJET`.
        items: what people write themselves, without a vendor.
    """

    hints: Sequence[str]
    endings: Sequence[str]
    items: Sequence[str]


def _category(hints: str, endings: str, items: str) -> Category:
    return Category(*(tuple(part.strip() for part in text.split(",")) for text in (hints, endings, items)))


CATEGORIES: Mapping[str, Category] = {
    "air travel": _category(
        "AIR, AIRLINES, AIRLINE, AIRWAYS, FLIGHTS, AVIATION",
        "JET, WINGS, AIR",
        "flight, plane ticket, seat reservation flight",
    ),
    "rail": _category(
        "RAIL, RAILWAY, RAILWAYS, TRAINS, RAILROAD, TRAMWAY",
        "RAIL, TRAIN",
        "train ticket, rail pass, night train",
    ),
    "taxi": _category(
        "TAXI, TAXIS, CAB, CABS, RIDESHARE, MINICAB",
        "CAB, TAXI, RIDE",
        "taxi ride, cab to the airport, taxi to the station",
    ),
    "car rental": _category(
        "RENT A CAR, CAR RENTAL, CAR HIRE, AUTO RENTAL, VAN HIRE",
        "RENTAL, HIRE",
        "rental car, hired van, car hire 3 days",
    ),
    "fuel": _category(
        "FUEL, PETROL, PETROLEUM, GASOLINE, FUELS, OIL",
        "FUEL, PETRO, OIL",
        "diesel, petrol, gasoline 40 litres",
    ),
    "parking": _category(
        "PARKING, CARPARK, PARKHAUS, VALET, PARKADE",
        "PARK, PARKING",
        "parking ticket, airport parking, parking meter",
    ),
    "hotel": _category(
        "HOTEL, HOTELS, INN, SUITES, LODGE, RESORT, HOSTEL, MOTEL",
        "INN, HOTEL, LODGE",
        "hotel room, 2 nights hotel, room with breakfast",
    ),
    "restaurant": _category(
        "RESTAURANT, GRILL, PIZZERIA, PIZZA, CAFE, COFFEE, BISTRO, DINER, KITCHEN, SUSHI, BURGERS, TAVERN",
        "GRILL, PIZZA, CAFE",
        "lunch, team dinner, coffee and cake",
    ),
    "groceries": _category(
        "GROCERY, GROCERIES, SUPERMARKET, FOODS, FOOD MARKET, GREENGROCER",
        "MART, FOODS, GROCER",
        "milk and bread, fruit and vegetables, food shopping",
    ),
    "office supplies": _category(
        "OFFICE, OFFICE SUPPLY, OFFICE DEPOT, STATIONERY, STATIONERS, PAPER, TONER",
        "OFFICE, PAPER",
        "office paper, printer toner, pens and staples",
    ),
    "software": _category(
        "SOFTWARE, CLOUD, SAAS, APPS, WEB HOSTING, COMPUTING",
        "SOFT, CLOUD, WARE",
        "software licence, cloud storage, web hosting",
    ),
    "telecom": _category(
        "TELECOM, MOBILE, WIRELESS, BROADBAND, PHONE, TELEPHONE, INTERNET",
        "TEL, FONE, MOBILE",
        "phone bill, internet line, mobile plan",
    ),
    "utilities": _category(
        "ELECTRIC, ELECTRICITY, POWER, WATER, ENERGY, SEWER, HEATING",
        "POWER, WATT, ENERGY",
        "electricity bill, water bill, heating costs",
    ),
    "insurance": _category(
        "INSURANCE, ASSURANCE, UNDERWRITERS, INDEMNITY, INSURERS",
        "SURE, INSURE",
        "insurance premium, liability policy, travel insurance",
    ),
    "bank fees": _category(
        "BANK FEE, BANK CHARGES, WIRE FEE, SERVICE FEE, OVERDRAFT FEE, ACCOUNT FEE, BANKING",
        "BANK",
        "bank charges, overdraft interest, account fee",
    ),
    "medical": _category(
        "PHARMACY, CLINIC, DENTAL, DENTIST, HOSPITAL, MEDICAL, OPTICIANS, DRUGSTORE",
        "MED, PHARM, DENT",
        "doctor visit, prescription, first aid kit",
    ),
    "postage": _category(
        "POST, POSTAL, POSTAGE, COURIER, COURIERS, PARCEL, SHIPPING",
        "POST, PARCEL",
        "stamps, registered letter, parcel shipping",
    ),
    "books": _category(
        "BOOKS, BOOKSHOP, BOOKSTORE, PUBLISHING, PUBLISHERS, LIBRARY, BOOKSELLERS",
        "BOOKS, PRESS",
        "textbook, journal subscription, 3 novels",
    ),
}
LABELS: Sequence[str] = tuple(CATEGORIES)

# Plain first words of vendors' names; they say nothing of a category. The last list is kept out of training.
STEMS = (
    "NORTHSTAR SUMMIT PIONEER LIBERTY UNITED NATIONAL CENTRAL GLOBAL PREMIER ROYAL CITY METRO COASTAL PACIFIC ATLANTIC ALPINE GOLDEN"
    " SILVER BLUE WHITE RED BLACK GRAND FIRST FIVE SEVEN STAR SUN MOON RIVER LAKE VALLEY HARBOR BRIDGE CASTLE TOWER CROWN EAGLE FALCON"
    " LION TIGER WOLF BEAR FOX ORCHID ROSE MAPLE CEDAR OAK WILLOW ASPEN OMEGA ALPHA GAMMA SIGMA ATLAS ORION VEGA POLARIS MERIDIAN"
    " HORIZON FRONTIER HERITAGE VICTORY UNION EURO BALTIC NORDIC IBERIA TUSCAN GENEVA SMITH JONES BAKER MILLER WEBER ROSSI GARCIA"
    " NGUYEN KIM SATO PATEL JOES MARIAS TONYS ANNAS KINGS QUEENS WESTSIDE EASTSIDE UPTOWN DOWNTOWN VILLAGE CORNER QUICK EASY SMART"
).split()
HELD_OUT_STEMS = (
    "DELTA ZENITH APEX CORAL HAWK OTTER JUNIPER SYCAMORE MONTEREY SIERRA TITAN ARGO CALYPSO LOTUS IVORY COBALT AMBER GRANITE KESTREL"
    " HERON BRAVO EVEREST DANUBE RHINE CASCADE PRAIRIE NOVAK FISCHER LOPEZ OKAFOR SILVAS LUCYS OSCARS HILLSIDE LAKEVIEW ROCKET"
).split()

CITIES = (
    "BOSTON;CHICAGO;DENVER;SEATTLE;AUSTIN;DALLAS;HOUSTON;ATLANTA;MIAMI;NEW YORK;SAN DIEGO;PHOENIX;PORTLAND;DETROIT;MEMPHIS;NASHVILLE"
    ";TORONTO;MONTREAL;LONDON;LEEDS;BRISTOL;DUBLIN;PARIS;LYON;BERLIN;HAMBURG;MUNICH;VIENNA;ZURICH;BASEL;MADRID;LISBON;ROME;MILAN;TURIN"
    ";WARSAW;PRAGUE;OSLO;BERGEN;HELSINKI;TALLINN;RIGA;ATHENS;TOKYO;OSAKA;SEOUL;SYDNEY;PERTH"
).split(";")
HELD_OUT_CITIES = "TULSA;OMAHA;BOISE;RALEIGH;CARDIFF;GLASGOW;NANTES;BREMEN;GRAZ;SEVILLE;NAPLES;KRAKOW;MALMO;KYOTO;AUCKLAND".split(";")
REGIONS = "MA IL CO WA TX GA FL NY CA AZ OR US USA GB UK IE FR DE AT CH ES PT IT PL NO FI JP AU".split()

PREFIXES = ("POS", "SQ *", "TST*", "PURCHASE", "CARD 4412", "DEBIT", "VISA", "PAYMENT TO", "WWW.")
LEGAL = ("INC", "LTD", "LLC", "GMBH", "CO", "SA", "PLC", "CORP")
