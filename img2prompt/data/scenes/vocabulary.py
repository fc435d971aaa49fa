"""Vocabulary of the scenes. Subjects are glyphs of two icon fonts that qtawesome ships.

An entry of `SUBJECTS` is `word`, or `words=glyph` where the font has another name for it; glyphs
with the prefix `fa:` come from Font Awesome 6, all others from Material Design Icons 6.
"""

SUBJECTS = """
cat; dog; rabbit; horse; cow; pig; sheep; duck; penguin; owl; shark; dolphin; jellyfish; turtle;
snake; bee; butterfly; ladybug; spider; bat; bird; elephant; kangaroo; koala; panda; unicorn;
snail; dragon=fa:dragon; frog=fa:frog; hippo=fa:hippo; otter=fa:otter; shrimp=fa:shrimp; fish;
tree; pine tree=pine-tree; palm tree=palm-tree; cactus; flower; mushroom; leaf; pumpkin; carrot;
apple=food-apple; pear=fruit-pear; pineapple=fruit-pineapple; watermelon=fruit-watermelon;
grape=fruit-grapes; lemon=fa:lemon; pepper=fa:pepper-hot; car; bus; train; truck; bicycle;
motorcycle=fa:motorcycle; airplane; helicopter; rocket; sailboat=sail-boat; tractor; submarine;
hot air balloon=airballoon; ufo; tank; scooter; skateboard; anchor; lifebuoy; ship wheel=ship-wheel;
house=home; castle; church; mosque; lighthouse; tent; barn; factory; igloo=fa:igloo; gate; fence;
ferris wheel=ferris-wheel; mountain=fa:mountain; volcano; island; sun=fa:sun; moon=fa:moon; cloud;
snowflake; lightning bolt=lightning-bolt; umbrella; rainbow=fa:rainbow; tornado=fa:tornado; star;
flame=fire; planet=earth; pizza; burger=hamburger; ice cream=ice-cream; cake; cupcake; cookie;
cheese; egg; beer; wine bottle=bottle-wine; pretzel; popcorn; taco; teacup=fa:mug-saucer; kettle;
croissant=food-croissant; guitar=guitar-acoustic; electric guitar=guitar-electric; piano; violin;
drum=fa:drum; trumpet; saxophone; microphone; bell; radio; hammer; axe; wrench;
screwdriver; shovel; anvil; candle; lamp; lightbulb; torch; key; padlock=lock;
compass; hourglass=fa:hourglass; clock; magnet; telescope; microscope;
camera; television; book; pencil; palette; feather; envelope=fa:envelope; balloon; gift; crown;
diamond=diamond-stone; ring; sword; shield; bow=bow-arrow; bomb; knight=chess-knight;
rook=chess-rook; dice=fa:dice; basketball; soccer ball=soccer; trophy; medal;
fedora=hat-fedora; cowboy hat=fa:hat-cowboy; sneaker=shoe-sneaker; high heel=shoe-heel;
shirt=tshirt-crew; backpack=bag-personal; bed; sofa; door; bathtub; ladder; barrel; bucket; broom;
treasure chest=treasure-chest; robot; ghost; alien; skull; snowman; teddy bear=teddy-bear;
puzzle piece=puzzle; kite; baby carriage=baby-carriage; fan; toaster; blender; heart; eye; tooth;
bone; brain; excavator; bulldozer; satellite; parachute; fountain; mailbox;
traffic light=traffic-light; fire hydrant=fire-hydrant; mitten=fa:mitten; sock=fa:socks;
gem=fa:gem; suitcase=fa:suitcase; syringe=fa:syringe; gavel
"""

DEMO_SUBJECTS = """
microwave; fridge; stove; washing machine=washing-machine; pirate; ninja; dove=fa:dove;
crow=fa:crow; mosquito=fa:mosquito; hot dog=fa:hotdog; candy cane=fa:candy-cane;
jet=fa:jet-fighter; stethoscope; tram; ambulance; taxi; fire truck=fire-truck; snowboard;
windsock; ice skate=skate; stool; typewriter; wardrobe; pinwheel; volleyball; campfire; coffin;
record player=record-player; lipstick; baguette; snowplow=fa:snowplow; shrine gate=fa:torii-gate
"""
"""Subjects that only the world `demo` has."""

PLURALS = {
    "bus": "buses", "butterfly": "butterflies", "cactus": "cacti", "church": "churches",
    "compass": "compasses", "dice": "dice", "factory": "factories", "fish": "fish",
    "hourglass": "hourglasses", "jellyfish": "jellyfish", "leaf": "leaves", "mailbox": "mailboxes",
    "sheep": "sheep", "snowman": "snowmen", "tooth": "teeth", "torch": "torches",
    "trophy": "trophies", "wrench": "wrenches",
}  # fmt: skip

COLOURS = {
    "red": (214, 40, 40),
    "orange": (244, 128, 24),
    "yellow": (250, 214, 40),
    "green": (46, 160, 67),
    "turquoise": (48, 200, 190),
    "blue": (38, 84, 214),
    "purple": (122, 48, 172),
    "pink": (244, 112, 178),
    "brown": (124, 74, 36),
    "black": (24, 24, 28),
    "white": (250, 250, 248),
    "grey": (138, 142, 148),
}

BACKGROUNDS = {
    "plain": "on a plain background",
    "night": "under a starry night sky",
    "meadow": "in a green meadow",
    "desert": "in the desert",
    "sunset": "at sunset",
    "sea": "by the sea",
    "snow": "in the snow",
    "rain": "in the rain",
    "checker": "on a checkered floor",
    "stripes": "in front of striped wallpaper",
    "dots": "in front of polka dots",
    "forest": "in a dark forest",
    "city": "above a city skyline",
    "fire": "surrounded by flames",
}

STYLES = {
    "flat": "a flat vector illustration of {}",
    "outline": "a line drawing of {}",
    "watercolor": "a watercolor painting of {}",
    "pixel": "pixel art of {}",
    "neon": "a glowing neon sign of {}",
    "charcoal": "a charcoal sketch of {}",
    "mosaic": "a stained glass mosaic of {}",
    "paper": "a paper cutout of {}",
    "photo": "an old sepia photograph of {}",
    "embroidery": "embroidery of {}",
    "blueprint": "a technical blueprint of {}",
    "chalk": "a chalk drawing of {} on a blackboard",
}
DEMO_STYLES = ("blueprint", "chalk")
"""Styles that only the world `demo` has."""

SIZES = {"": 1.0, "tiny": 0.6, "huge": 1.45}

COUNTS = {1: "a", 2: "two", 3: "three", 4: "four"}

ARRANGEMENTS = {"row": "in a row", "column": "stacked in a column", "scattered": "scattered around"}

RELATIONS = {
    "beside": "next to",
    "above": "above",
    "inside": "in front of",
}


def subjects() -> dict[str, str]:
    """Return the glyph of each subject by name."""
    return _glyphs(SUBJECTS) | _glyphs(DEMO_SUBJECTS)


def demo_subjects() -> frozenset[str]:
    """Return the names of the subjects that only the world `demo` has."""
    return frozenset(_glyphs(DEMO_SUBJECTS))


def _glyphs(text: str) -> dict[str, str]:
    entries = [entry.strip() for entry in text.replace("\n", " ").split(";")]
    pairs = (entry.partition("=") for entry in entries if entry)
    return {name: glyph or name for name, _, glyph in pairs}


def plural(name: str) -> str:
    """Return the plural of a subject's name."""
    return PLURALS.get(name, f"{name}s")
