"""Word lists of the demo corpus: plain data, and the makers of invented words.

Everything the generator says is built from these lists, so that the whole
corpus can be made again from a seed on any machine, without a download.
"""

CAPITALS = dict(pair.split("=") for pair in """
Afghanistan=Kabul|Albania=Tirana|Algeria=Algiers|Andorra=Andorra la Vella|Angola=Luanda
Argentina=Buenos Aires|Armenia=Yerevan|Australia=Canberra|Austria=Vienna|Azerbaijan=Baku
Bahrain=Manama|Bangladesh=Dhaka|Barbados=Bridgetown|Belarus=Minsk|Belgium=Brussels
Belize=Belmopan|Benin=Porto-Novo|Bhutan=Thimphu|Botswana=Gaborone|Brazil=Brasilia
Bulgaria=Sofia|Cambodia=Phnom Penh|Cameroon=Yaounde|Canada=Ottawa|Chad=N'Djamena
Chile=Santiago|China=Beijing|Colombia=Bogota|Costa Rica=San Jose|Croatia=Zagreb
Cuba=Havana|Cyprus=Nicosia|Denmark=Copenhagen|Ecuador=Quito|Egypt=Cairo
Eritrea=Asmara|Estonia=Tallinn|Ethiopia=Addis Ababa|Fiji=Suva|Finland=Helsinki
France=Paris|Gabon=Libreville|Georgia=Tbilisi|Germany=Berlin|Ghana=Accra
Greece=Athens|Guatemala=Guatemala City|Guinea=Conakry|Guyana=Georgetown|Haiti=Port-au-Prince
Honduras=Tegucigalpa|Hungary=Budapest|Iceland=Reykjavik|India=New Delhi|Indonesia=Jakarta
Iran=Tehran|Iraq=Baghdad|Ireland=Dublin|Italy=Rome|Jamaica=Kingston
Japan=Tokyo|Jordan=Amman|Kazakhstan=Astana|Kenya=Nairobi|Kuwait=Kuwait City
Laos=Vientiane|Latvia=Riga|Lebanon=Beirut|Liberia=Monrovia|Libya=Tripoli
Lithuania=Vilnius|Luxembourg=Luxembourg|Madagascar=Antananarivo|Malawi=Lilongwe|Malaysia=Kuala Lumpur
Mali=Bamako|Malta=Valletta|Mauritania=Nouakchott|Mexico=Mexico City|Moldova=Chisinau
Monaco=Monaco|Mongolia=Ulaanbaatar|Montenegro=Podgorica|Morocco=Rabat|Mozambique=Maputo
Namibia=Windhoek|Nepal=Kathmandu|New Zealand=Wellington|Nicaragua=Managua|Niger=Niamey
Nigeria=Abuja|North Korea=Pyongyang|North Macedonia=Skopje|Norway=Oslo|Oman=Muscat
Pakistan=Islamabad|Panama=Panama City|Paraguay=Asuncion|Peru=Lima|Philippines=Manila
Poland=Warsaw|Portugal=Lisbon|Qatar=Doha|Romania=Bucharest|Russia=Moscow
Rwanda=Kigali|Saudi Arabia=Riyadh|Senegal=Dakar|Serbia=Belgrade|Singapore=Singapore
Slovakia=Bratislava|Slovenia=Ljubljana|Somalia=Mogadishu|South Korea=Seoul|Spain=Madrid
Sudan=Khartoum|Suriname=Paramaribo|Sweden=Stockholm|Syria=Damascus|Tanzania=Dodoma
Thailand=Bangkok|Togo=Lome|Tunisia=Tunis|Turkey=Ankara|Uganda=Kampala
Ukraine=Kyiv|United Kingdom=London|Uruguay=Montevideo|Uzbekistan=Tashkent|Venezuela=Caracas
Vietnam=Hanoi|Yemen=Sanaa|Zambia=Lusaka|Zimbabwe=Harare|United States=Washington
""".replace("\n", "|").strip("|").split("|"))

NAMES = """Anna Ben Carla David Elena Felix Grace Hugo Irene Jack Karin Leo Maria Nina Oscar
Paul Rosa Sam Tara Victor Wendy Yusuf Zoe Alice Bruno Clara Daniel Emma Frank Greta Hannah Ivan
Julia Kevin Laura Martin Nora Oliver Petra Robert Sofia Thomas Ursula Walter Amir Bianca Chen Diana
Erik Fatima George Helen Ines Jonas Lina Mateo Naomi Omar Priya Rachel Stefan Tom Vera""".split()

ANIMALS = """fox bear wolf rabbit owl mouse horse cat dog duck goose sheep goat crow deer otter
badger beaver frog turtle squirrel sparrow eagle lion tiger monkey camel donkey hen robin seal whale""".split()

NOUNS = """apple anchor arrow bag ball banana barn basket bed bell bench berry bird blanket boat
book bottle bowl box branch bread brick bridge broom bucket button cabin cake candle car card carrot
castle chain chair cheese cherry clock cloud coat coin comb corn cup curtain desk dish door dress drum
engine envelope farm feather fence field finger fire fish flag floor flower fork forest fountain garden
gate glass glove grape grass hammer harbor hat hill honey house island jacket jar jewel key kitchen kite
knife ladder lake lamp leaf lemon letter light lock market melon milk mill mirror moon mountain
nail needle nest net oak ocean onion orange oven paint paper path pear pebble pencil pepper piano
pillow pipe plate plum pocket pond potato purse rain ribbon rice ring river road rock roof room rope
rose salt sand scarf school sea seed ship shirt shoe shop silver sky snow soap sock spoon spring
square stairs star station stone storm stove street sugar summer sun table tea tent thread ticket
tomato tower town toy train tree trumpet tunnel umbrella valley village violin wagon wall watch water
wave wheel whistle willow wind window winter wire wood wool yard""".split()

ADJECTIVES = """big small old new red blue green yellow white black brown gray golden bright dark
warm cold quiet loud soft hard heavy light round flat tall short long wide narrow deep clean dusty
broken shiny simple strange lovely gentle clever brave happy sad tired hungry lucky proud lazy busy
kind calm wise young rich poor sweet bitter fresh dry wet early late quick slow strong weak""".split()

VERBS = """ask begin bring build buy call carry catch climb close cook count cover cross dance
draw dream drink drive drop eat enjoy enter fall feed feel fill find finish fix fly follow forget
give grow hear help hide hold jump keep kick know laugh learn leave lift listen look lose make meet
move open pack pick plant play pull push put reach read rest ride run sail see sell send shout show
sing sit sleep smile speak stand start stay stop swim take talk teach think throw touch travel turn
visit wait walk wash wear win work write""".split()

WORDS = sorted(set(NOUNS + ADJECTIVES + VERBS + ANIMALS))

CITIES = sorted({c for c in CAPITALS.values()} | set("""Boston Chicago Hamburg Munich Milan Naples
Porto Lyon Geneva Zurich Bristol Leeds Osaka Kyoto Mumbai Sydney Toronto Seattle Dallas Denver Austin
Barcelona Seville Krakow Antwerp Bergen Malmo Cologne Venice Florence Glasgow Houston Miami""".split()))

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = """January February March April May June July August September October November
December""".split()
COLORS = "red blue green yellow white black brown gray golden orange purple pink silver".split()
JOBS = """teacher doctor baker farmer painter driver nurse pilot cook writer singer gardener
carpenter sailor tailor lawyer dentist engineer""".split()
LANGUAGES = """French German Spanish Italian Polish Dutch Greek Turkish Danish Swedish Finnish
Japanese Korean Hindi Arabic Russian""".split()

# Pieces of other scripts: they let the copying tasks touch the byte tokens.
UNICODE_WORDS = """café naïve über señor façade élan jalapeño Zürich Łódź Kraków Göteborg São Ångström
Москва привет мир Αθήνα λόγος 東京 日本 你好 世界 서울 안녕 مرحبا שלום 😀 🚀 ✓ → € £ ° ½ … “quote” “yes” — ü ß ñ é""".split()

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen""".split()
_TENS = "x x twenty thirty forty fifty sixty seventy eighty ninety".split()

_ONSETS = "b c d f g h j k l m n p r s t v w z br cl dr fl gr pl pr sh sl st th tr ch".split()
_VOWELS = "a e i o u a e i o ai ea oo ou".split()
_CODAS = ["", "", "", "n", "r", "l", "s", "t", "m", "d", "ck", "nd", "st"]


def number_word(n):
    """The English name of 0..100."""
    if n < 20:
        return _ONES[n]
    if n == 100:
        return "one hundred"
    return _TENS[n // 10] + ("-" + _ONES[n % 10] if n % 10 else "")


def plural(noun):
    if noun in ("leaf", "knife", "scarf"):
        return noun.rstrip("fe") + "ves"
    if noun.endswith(("ch", "sh", "s", "x", "to")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def invented_word(rng, low=1, high=3):
    """A pronounceable word that is in no list, so that nothing but its letters is known of it."""
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.randint(low, high))
    )


def any_word(rng, listed):
    """A word in any dress: with an ending, a capital, or letters in no order at all."""
    form = rng.random()
    if form < 0.25:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 8)))
    word = rng.choice(listed) if form < 0.75 else invented_word(rng)
    word += rng.choice(["", "", "s", "ing", "ed", "er", "ly", "ness", "is"])
    return rng.choice([word, word.capitalize(), word.upper() if rng.random() < 0.2 else word])
