"""The vocabulary of the embedded base's world: what can be drawn, in which style, on what.

A noun is `(noun, kind, file stem)`. The kind is the class noun ("a fox is an animal"), the stem is the emoji's file
name in every sprite folder (the Unicode short name with dashes). The order of `NOUNS` is part of the format: a base
that knows `n` concepts knows the first `n`.
"""

# fmt: off
NOUNS: tuple[tuple[str, str, str], ...] = (
    # The first 48: what a base trained on CPU knows.
    ("cat", "animal", "cat"), ("dog", "animal", "dog"), ("horse", "animal", "horse"), ("pig", "animal", "pig"),
    ("elephant", "animal", "elephant"), ("rabbit", "animal", "rabbit"), ("penguin", "animal", "penguin"),
    ("owl", "animal", "owl"), ("frog", "animal", "frog"), ("fish", "animal", "tropical-fish"),
    ("whale", "animal", "spouting-whale"), ("octopus", "animal", "octopus"), ("crab", "animal", "crab"),
    ("butterfly", "animal", "butterfly"), ("apple", "food", "red-apple"), ("pear", "food", "pear"),
    ("strawberry", "food", "strawberry"), ("pineapple", "food", "pineapple"), ("watermelon", "food", "watermelon"),
    ("carrot", "food", "carrot"), ("mushroom", "food", "mushroom"), ("pizza", "food", "pizza"),
    ("doughnut", "food", "doughnut"), ("cake", "food", "birthday-cake"), ("car", "vehicle", "automobile"),
    ("bus", "vehicle", "bus"), ("train", "vehicle", "locomotive"), ("bicycle", "vehicle", "bicycle"),
    ("rocket", "vehicle", "rocket"), ("airplane", "vehicle", "airplane"), ("boat", "vehicle", "sailboat"),
    ("house", "building", "house"), ("church", "building", "church"), ("tent", "building", "tent"),
    ("tree", "plant", "deciduous-tree"), ("sunflower", "plant", "sunflower"), ("rose", "plant", "rose"),
    ("guitar", "instrument", "guitar"), ("drum", "instrument", "drum"), ("crown", "clothing", "crown"),
    ("hat", "clothing", "top-hat"), ("shoe", "clothing", "running-shoe"), ("hammer", "tool", "hammer"),
    ("umbrella", "thing", "umbrella"), ("clock", "thing", "alarm-clock"), ("robot", "character", "robot"),
    ("ghost", "character", "ghost"), ("snowman", "character", "snowman"),
    # The rest of the full base.
    ("monkey", "animal", "monkey"), ("gorilla", "animal", "gorilla"), ("wolf", "animal", "wolf"),
    ("raccoon", "animal", "raccoon"), ("lion", "animal", "lion"), ("leopard", "animal", "leopard"),
    ("unicorn", "animal", "unicorn"), ("deer", "animal", "deer"), ("cow", "animal", "cow"), ("boar", "animal", "boar"),
    ("ram", "animal", "ram"), ("goat", "animal", "goat"), ("camel", "animal", "camel"),
    ("hippopotamus", "animal", "hippopotamus"), ("mouse", "animal", "mouse"), ("hamster", "animal", "hamster"),
    ("bat", "animal", "bat"), ("sloth", "animal", "sloth"), ("otter", "animal", "otter"), ("skunk", "animal", "skunk"),
    ("kangaroo", "animal", "kangaroo"), ("badger", "animal", "badger"), ("turkey", "animal", "turkey"),
    ("rooster", "animal", "rooster"), ("chick", "animal", "baby-chick"), ("bird", "animal", "bird"),
    ("dove", "animal", "dove"), ("eagle", "animal", "eagle"), ("duck", "animal", "duck"), ("swan", "animal", "swan"),
    ("peacock", "animal", "peacock"), ("lizard", "animal", "lizard"), ("snake", "animal", "snake"),
    ("dinosaur", "animal", "sauropod"), ("shrimp", "animal", "shrimp"), ("squid", "animal", "squid"),
    ("oyster", "animal", "oyster"), ("snail", "animal", "snail"), ("ladybug", "animal", "lady-beetle"),
    ("scorpion", "animal", "scorpion"), ("grapes", "food", "grapes"), ("melon", "food", "melon"),
    ("orange", "food", "tangerine"), ("mango", "food", "mango"), ("kiwi", "food", "kiwi-fruit"),
    ("tomato", "food", "tomato"), ("coconut", "food", "coconut"), ("eggplant", "food", "eggplant"),
    ("potato", "food", "potato"), ("corn", "food", "ear-of-corn"), ("garlic", "food", "garlic"),
    ("onion", "food", "onion"), ("chestnut", "food", "chestnut"), ("bread", "food", "bread"),
    ("croissant", "food", "croissant"), ("pretzel", "food", "pretzel"), ("pancakes", "food", "pancakes"),
    ("waffle", "food", "waffle"), ("cheese", "food", "cheese-wedge"), ("bacon", "food", "bacon"),
    ("fries", "food", "french-fries"), ("taco", "food", "taco"), ("egg", "food", "egg"), ("salad", "food", "green-salad"),
    ("popcorn", "food", "popcorn"), ("butter", "food", "butter"), ("pie", "food", "pie"), ("candy", "food", "candy"),
    ("lollipop", "food", "lollipop"), ("honey", "food", "honey-pot"), ("wine", "food", "wine-glass"),
    ("beer", "food", "beer-mug"), ("milk", "food", "glass-of-milk"), ("coffee", "food", "hot-beverage"),
    ("taxi", "vehicle", "taxi"), ("truck", "vehicle", "delivery-truck"), ("tractor", "vehicle", "tractor"),
    ("scooter", "vehicle", "motor-scooter"), ("ferry", "vehicle", "ferry"), ("ship", "vehicle", "ship"),
    ("canoe", "vehicle", "canoe"), ("satellite", "vehicle", "satellite"), ("factory", "building", "factory"),
    ("school", "building", "school"), ("hospital", "building", "hospital"), ("stadium", "building", "stadium"),
    ("fountain", "building", "fountain"), ("pine", "plant", "evergreen-tree"), ("palm", "plant", "palm-tree"),
    ("clover", "plant", "four-leaf-clover"), ("leaf", "plant", "fallen-leaf"), ("tulip", "plant", "tulip"),
    ("saxophone", "instrument", "saxophone"), ("piano", "instrument", "musical-keyboard"),
    ("banjo", "instrument", "banjo"), ("shirt", "clothing", "t-shirt"), ("jeans", "clothing", "jeans"),
    ("scarf", "clothing", "scarf"), ("gloves", "clothing", "gloves"), ("boot", "clothing", "hiking-boot"),
    ("ring", "clothing", "ring"), ("wrench", "tool", "wrench"), ("key", "tool", "key"), ("pencil", "tool", "pencil"),
    ("brush", "tool", "paintbrush"), ("magnet", "tool", "magnet"), ("microscope", "tool", "microscope"),
    ("bell", "thing", "bell"), ("candle", "thing", "candle"), ("book", "thing", "closed-book"),
    ("camera", "thing", "camera"), ("television", "thing", "television"), ("chair", "thing", "chair"),
    ("door", "thing", "door"), ("bed", "thing", "bed"), ("bomb", "thing", "bomb"), ("shield", "thing", "shield"),
    ("trophy", "thing", "trophy"), ("balloon", "thing", "balloon"), ("gift", "thing", "wrapped-gift"),
    ("dice", "thing", "game-die"), ("football", "thing", "soccer-ball"), ("basketball", "thing", "basketball"),
    ("envelope", "thing", "envelope"), ("battery", "thing", "battery"), ("laptop", "thing", "laptop"),
    ("skull", "character", "skull"), ("pumpkin", "character", "jack-o-lantern"), ("goblin", "character", "goblin"),
    ("sun", "sky", "sun"), ("moon", "sky", "crescent-moon"), ("star", "sky", "star"), ("cloud", "sky", "cloud"),
    ("rainbow", "sky", "rainbow"), ("fire", "sky", "fire"), ("planet", "sky", "ringed-planet"), ("heart", "thing", "red-heart"),
)

# Never shown to the base, in any style: the subjects that personalisation is measured on.
HELD_OUT_NOUNS: tuple[tuple[str, str, str], ...] = (
    ("fox", "animal", "fox"), ("tiger", "animal", "tiger"), ("zebra", "animal", "zebra"), ("giraffe", "animal", "giraffe"),
    ("koala", "animal", "koala"), ("hedgehog", "animal", "hedgehog"), ("chipmunk", "animal", "chipmunk"),
    ("parrot", "animal", "parrot"), ("flamingo", "animal", "flamingo"), ("dolphin", "animal", "dolphin"),
    ("shark", "animal", "shark"), ("lobster", "animal", "lobster"), ("bee", "animal", "honeybee"),
    ("blowfish", "animal", "blowfish"), ("cricket", "animal", "cricket"), ("peach", "food", "peach"),
    ("cherries", "food", "cherries"), ("avocado", "food", "avocado"), ("broccoli", "food", "broccoli"),
    ("cookie", "food", "cookie"), ("cupcake", "food", "cupcake"), ("sushi", "food", "sushi"),
    ("hotdog", "food", "hot-dog"), ("icecream", "food", "ice-cream"), ("helicopter", "vehicle", "helicopter"),
    ("motorcycle", "vehicle", "motorcycle"), ("tram", "vehicle", "tram-car"), ("ufo", "vehicle", "flying-saucer"),
    ("racer", "vehicle", "racing-car"), ("speedboat", "vehicle", "speedboat"), ("circus", "building", "circus-tent"),
    ("bank", "building", "bank"), ("hibiscus", "plant", "hibiscus"), ("bouquet", "plant", "bouquet"),
    ("violin", "instrument", "violin"), ("trumpet", "instrument", "trumpet"), ("backpack", "clothing", "backpack"),
    ("dress", "clothing", "dress"), ("sandal", "clothing", "woman-s-sandal"), ("scissors", "tool", "scissors"),
    ("axe", "tool", "axe"), ("telephone", "thing", "telephone"), ("teddy", "thing", "teddy-bear"),
    ("lantern", "thing", "red-paper-lantern"), ("kite", "thing", "kite"), ("clown", "character", "clown-face"),
    ("alien", "character", "alien"), ("ogre", "character", "ogre"),
)

# fmt: on

KINDS: tuple[str, ...] = tuple(sorted({kind for _, kind, _ in NOUNS}))

# Style word -> sprite folder. The order is part of the format, as for NOUNS.
STYLES: tuple[tuple[str, str], ...] = (("flat", "twemoji"), ("3d", "fluent-3d"), ("blob", "blob"), ("noto", "noto"))
# Never shown to the base: what style learning is measured on.
HELD_OUT_STYLES: tuple[tuple[str, str], ...] = (("inked", "fluent-high-contrast"),)

# Background word -> (caption phrase, top RGB, bottom RGB, height of the horizon as a share of the picture or None).
BACKGROUNDS: dict[str, tuple[str, tuple[int, int, int], tuple[int, int, int], float | None]] = {
    "red": ("on a red background", (214, 62, 56), (214, 62, 56), None),
    "orange": ("on an orange background", (240, 150, 50), (240, 150, 50), None),
    "yellow": ("on a yellow background", (246, 216, 84), (246, 216, 84), None),
    "green": ("on a green background", (84, 176, 92), (84, 176, 92), None),
    "blue": ("on a blue background", (70, 120, 214), (70, 120, 214), None),
    "purple": ("on a purple background", (142, 92, 190), (142, 92, 190), None),
    "pink": ("on a pink background", (244, 164, 192), (244, 164, 192), None),
    "gray": ("on a gray background", (136, 140, 146), (136, 140, 146), None),
    "white": ("on a white background", (246, 246, 246), (246, 246, 246), None),
    "black": ("on a black background", (30, 32, 36), (30, 32, 36), None),
    "meadow": ("in a meadow", (156, 210, 240), (112, 178, 74), 0.55),
    "sea": ("at the sea", (200, 232, 246), (40, 130, 180), 0.5),
    "desert": ("in the desert", (250, 208, 150), (222, 174, 104), 0.6),
    "night": ("at night", (26, 32, 84), (66, 58, 110), 0.7),
}

SIZES: dict[str, tuple[int, int]] = {
    "small": (22, 27),
    "medium": (33, 39),
    "large": (46, 54),
}  # side in 64ths, inclusive
POSITIONS: dict[str, tuple[str, int, int]] = {
    "center": ("in the center", 0, 0),
    "left": ("on the left", -1, 0),
    "right": ("on the right", 1, 0),
    "top": ("at the top", 0, -1),
    "bottom": ("at the bottom", 0, 1),
}
