//! The corpus: one small sentence, and what eight skills make of it.

use rand::{Rng, seq::IndexedRandom};

/// English, French, feminine?
const NOUNS: [(&str, &str, bool); 26] = [
    ("dog", "chien", false),
    ("cat", "chat", false),
    ("horse", "cheval", false),
    ("fox", "renard", false),
    ("wolf", "loup", false),
    ("frog", "grenouille", true),
    ("mouse", "souris", true),
    ("cow", "vache", true),
    ("goat", "chèvre", true),
    ("hen", "poule", true),
    ("sheep", "mouton", false),
    ("rabbit", "lapin", false),
    ("duck", "canard", false),
    ("king", "roi", false),
    ("queen", "reine", true),
    ("girl", "fille", true),
    ("boy", "garçon", false),
    ("baker", "boulanger", false),
    ("farmer", "fermier", false),
    ("sailor", "marin", false),
    ("doctor", "médecin", false),
    ("witch", "sorcière", true),
    ("princess", "princesse", true),
    ("knight", "chevalier", false),
    ("neighbour", "voisin", false),
    ("dancer", "danseuse", true),
];

/// English, French masculine, French feminine, before the noun?
const ADJECTIVES: [(&str, &str, &str, bool); 14] = [
    ("small", "petit", "petite", true),
    ("big", "grand", "grande", true),
    ("old", "vieux", "vieille", true),
    ("young", "jeune", "jeune", true),
    ("pretty", "joli", "jolie", true),
    ("red", "rouge", "rouge", false),
    ("black", "noir", "noire", false),
    ("white", "blanc", "blanche", false),
    ("green", "vert", "verte", false),
    ("happy", "heureux", "heureuse", false),
    ("sad", "triste", "triste", false),
    ("tired", "fatigué", "fatiguée", false),
    ("hungry", "affamé", "affamée", false),
    ("brave", "courageux", "courageuse", false),
];

/// English present, base, past; French.
const VERBS: [(&str, &str, &str, &str); 12] = [
    ("sleeps", "sleep", "slept", "dort"),
    ("runs", "run", "ran", "court"),
    ("sings", "sing", "sang", "chante"),
    ("dances", "dance", "danced", "danse"),
    ("eats", "eat", "ate", "mange"),
    ("waits", "wait", "waited", "attend"),
    ("plays", "play", "played", "joue"),
    ("works", "work", "worked", "travaille"),
    ("swims", "swim", "swam", "nage"),
    ("reads", "read", "read", "lit"),
    ("walks", "walk", "walked", "marche"),
    ("laughs", "laugh", "laughed", "rit"),
];

const PLACES: [(&str, &str); 12] = [
    ("in the garden", "dans le jardin"),
    ("in the forest", "dans la forêt"),
    ("near the river", "près de la rivière"),
    ("on the bridge", "sur le pont"),
    ("in the kitchen", "dans la cuisine"),
    ("behind the house", "derrière la maison"),
    ("under the tree", "sous l'arbre"),
    ("in the village", "dans le village"),
    ("by the sea", "au bord de la mer"),
    ("on the hill", "sur la colline"),
    ("in the castle", "dans le château"),
    ("at the market", "au marché"),
];

/// What the model can do with a sentence, by the word that asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skill {
    /// No word: it agrees.
    Agree,
    Shout,
    Past,
    Ask,
    Deny,
    Who,
    Where,
    French,
}

pub const SKILLS: [Skill; 8] = [
    Skill::Agree,
    Skill::Shout,
    Skill::Past,
    Skill::Ask,
    Skill::Deny,
    Skill::Who,
    Skill::Where,
    Skill::French,
];

/// A sentence: indices into the word lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sentence {
    noun: usize,
    adjective: usize,
    verb: usize,
    place: usize,
}

impl Sentence {
    pub fn random(rng: &mut impl Rng) -> Self {
        Self {
            noun: rng.random_range(0..NOUNS.len()),
            adjective: rng.random_range(0..ADJECTIVES.len()),
            verb: rng.random_range(0..VERBS.len()),
            place: rng.random_range(0..PLACES.len()),
        }
    }

    /// Whether the sentence is kept out of the corpus, for the quick start and for tests: about one in eight.
    pub fn is_held_out(self) -> bool {
        (self.noun + 3 * self.adjective + 5 * self.verb + 7 * self.place).is_multiple_of(8)
    }

    fn who(self) -> String {
        format!("the {} {}", ADJECTIVES[self.adjective].0, NOUNS[self.noun].0)
    }

    /// The sentence itself.
    pub fn english(self) -> String {
        format!("{} {} {}", self.who(), VERBS[self.verb].0, PLACES[self.place].0)
    }

    /// The sentence in French.
    pub fn french(self) -> String {
        let (_, noun, feminine) = NOUNS[self.noun];
        let (_, masculine, feminine_form, before) = ADJECTIVES[self.adjective];
        let (article, adjective) = if feminine { ("la", feminine_form) } else { ("le", masculine) };
        let who = if before { format!("{adjective} {noun}") } else { format!("{noun} {adjective}") };
        format!("{article} {who} {} {}", VERBS[self.verb].3, PLACES[self.place].1)
    }

    /// The question that asks for a skill, and the answer.
    pub fn turn(self, skill: Skill) -> (String, String) {
        let (sentence, who, place) = (self.english(), self.who(), PLACES[self.place].0);
        let (_, base, past, _) = VERBS[self.verb];
        let (word, answer) = match skill {
            Skill::Agree => return (sentence.clone(), format!("Yes, {sentence}.")),
            Skill::Shout => ("shout", format!("{}!", sentence.to_uppercase())),
            Skill::Past => ("past", format!("{who} {past} {place}")),
            Skill::Ask => ("ask", format!("does {who} {base} {place}?")),
            Skill::Deny => ("deny", format!("{who} does not {base} {place}")),
            Skill::Who => ("who", who.clone()),
            Skill::Where => ("where", place.to_string()),
            Skill::French => ("french", self.french()),
        };
        (format!("{word}: {sentence}"), answer)
    }
}

/// A turn that the corpus may hold.
pub fn random_turn(rng: &mut impl Rng) -> (String, String) {
    loop {
        let sentence = Sentence::random(rng);
        if !sentence.is_held_out() {
            return sentence.turn(*SKILLS.choose(rng).expect("there are skills"));
        }
    }
}
