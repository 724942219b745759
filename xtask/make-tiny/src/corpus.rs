//! The corpus: small generated sentences, and eight ways to answer one.

use rand::{Rng, seq::IndexedRandom};

/// English, French, whether it is feminine in French.
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

/// English, French masculine, French feminine, whether it precedes the noun in French.
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

/// English present, base form, past; French present.
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

/// English, French.
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

/// A way to answer a sentence. All but [`Agree`](Self::Agree) are requested by a word before the sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skill {
    Agree,
    Shout,
    Past,
    Ask,
    Deny,
    Who,
    Where,
    French,
}

/// Every skill.
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

impl Skill {
    /// The word that requests it.
    pub fn word(self) -> Option<&'static str> {
        match self {
            Skill::Agree => None,
            Skill::Shout => Some("shout"),
            Skill::Past => Some("past"),
            Skill::Ask => Some("ask"),
            Skill::Deny => Some("deny"),
            Skill::Who => Some("who"),
            Skill::Where => Some("where"),
            Skill::French => Some("french"),
        }
    }
}

/// A sentence, as indices into the word lists.
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

    /// Whether the sentence is kept out of the corpus, for the quick start and for tests. One sentence in eight is.
    pub fn is_held_out(self) -> bool {
        (self.noun + 3 * self.adjective + 5 * self.verb + 7 * self.place).is_multiple_of(8)
    }

    fn subject(self) -> String {
        format!("the {} {}", ADJECTIVES[self.adjective].0, NOUNS[self.noun].0)
    }

    /// The sentence itself.
    pub fn english(self) -> String {
        format!("{} {} {}", self.subject(), VERBS[self.verb].0, PLACES[self.place].0)
    }

    /// The sentence in French.
    pub fn french(self) -> String {
        let (_, noun, feminine) = NOUNS[self.noun];
        let (_, masculine, feminine_form, before) = ADJECTIVES[self.adjective];
        let (article, adjective) = if feminine { ("la", feminine_form) } else { ("le", masculine) };
        let who = if before { format!("{adjective} {noun}") } else { format!("{noun} {adjective}") };
        format!("{article} {who} {} {}", VERBS[self.verb].3, PLACES[self.place].1)
    }

    /// A prompt that requests the skill, and its answer.
    pub fn turn(self, skill: Skill) -> (String, String) {
        let (sentence, subject, place) = (self.english(), self.subject(), PLACES[self.place].0);
        let (_, base, past, _) = VERBS[self.verb];
        let prompt = match skill.word() {
            Some(word) => format!("{word}: {sentence}"),
            None => sentence.clone(),
        };
        let answer = match skill {
            Skill::Agree => format!("Yes, {sentence}."),
            Skill::Shout => format!("{}!", sentence.to_uppercase()),
            Skill::Past => format!("{subject} {past} {place}"),
            Skill::Ask => format!("does {subject} {base} {place}?"),
            Skill::Deny => format!("{subject} does not {base} {place}"),
            Skill::Who => subject,
            Skill::Where => place.to_string(),
            Skill::French => self.french(),
        };
        (prompt, answer)
    }
}

/// A random prompt and answer of the corpus.
pub fn random_turn(rng: &mut impl Rng) -> (String, String) {
    loop {
        let sentence = Sentence::random(rng);
        if !sentence.is_held_out() {
            return sentence.turn(*SKILLS.choose(rng).expect("there are skills"));
        }
    }
}
