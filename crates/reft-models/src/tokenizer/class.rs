//! The tokenizer classes of transformers: which one a model has, and what it changes.

use super::json::JsonFile;
use reft_core::FileError;
use serde_json::Value;

/// Names of the special tokens that have one text each, in transformers' order.
pub(super) const SPECIAL: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What a fast tokenizer class of transformers does to `tokenizer.json` when it is loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Class {
    /// The name without `Fast`.
    pub name: &'static str,
    /// Default texts of the [`SPECIAL`] tokens; empty if there is none.
    pub tokens: [&'static str; 7],
    /// Default of `additional_special_tokens`.
    pub additional: &'static [&'static str],
    /// Special tokens always added.
    pub always: &'static [&'static str],
    /// Which texts become tokens with flags of their own.
    pub flags: Flags,
    /// The default of `add_bos_token`, if the class writes the post-processor itself.
    pub writes_template: Option<bool>,
    /// Whether `add_prefix_space` is written into the pre-tokenizer.
    pub prefix_space: bool,
    /// Whether `add_prefix_space` and `trim_offsets` are written into the post-processor.
    pub offsets: bool,
    /// Which options of the `BertNormalizer` are written.
    pub normalizer: Option<BertOptions>,
    /// Whether the tokens `<extra_id_0>` to `<extra_id_99>` are added.
    pub extra_ids: bool,
}

/// Special tokens whose text becomes a token with flags of the class, even where `tokenizer.json` has others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flags {
    /// None.
    None,
    /// The mask token takes the spaces before it.
    Mask,
    /// The same, and it is found in the normalized text.
    MaskNormalized,
    /// The tokens with these indices have no flags.
    Plain(&'static [usize]),
    /// The same, and the mask token takes the spaces before it.
    PlainAndMask(&'static [usize]),
}

/// The options of a `BertNormalizer` that a class writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BertOptions {
    /// `do_lower_case` and `strip_accents`.
    Case,
    /// The same and `tokenize_chinese_chars`.
    CaseAndChinese,
}

impl Class {
    const fn new(name: &'static str, tokens: [&'static str; 7]) -> Self {
        Self {
            name,
            tokens,
            additional: &[],
            always: &[],
            flags: Flags::None,
            writes_template: None,
            prefix_space: false,
            offsets: false,
            normalizer: None,
            extra_ids: false,
        }
    }

    /// Whether the model gets token types: as `model_input_names` says, else as the class has it.
    pub fn has_token_types(&self, config: &JsonFile) -> Result<bool, FileError> {
        match config.get("model_input_names") {
            None => Ok(!WITHOUT_TOKEN_TYPES.contains(&self.name)),
            Some(Value::Array(names)) => Ok(names.iter().any(|name| name == "token_type_ids")),
            Some(other) => Err(config.wrong("model_input_names", other, "a list of names")),
        }
    }

    const fn flags(self, flags: Flags) -> Self {
        Self { flags, ..self }
    }

    const fn additional(self, additional: &'static [&'static str]) -> Self {
        Self { additional, ..self }
    }

    const fn template(self, add_bos: bool) -> Self {
        Self { writes_template: Some(add_bos), ..self }
    }

    const fn prefix_space(self) -> Self {
        Self { prefix_space: true, ..self }
    }

    const fn offsets(self) -> Self {
        Self { prefix_space: true, offsets: true, ..self }
    }

    const fn bert(name: &'static str) -> Self {
        Self { normalizer: Some(BertOptions::CaseAndChinese), ..Self::new(name, BERT) }
    }

    const fn t5(name: &'static str) -> Self {
        Self { extra_ids: true, ..Self::new(name, ["", "</s>", "<unk>", "", "<pad>", "", ""]) }
    }
}

/// The classes of encoders whose models get no token types.
const WITHOUT_TOKEN_TYPES: [&str; 5] = [
    "RobertaTokenizer",
    "XLMRobertaTokenizer",
    "CamembertTokenizer",
    "DistilBertTokenizer",
    "MPNetTokenizer",
];

const NONE: [&str; 7] = [""; 7];
const BERT: [&str; 7] = ["", "", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"];
const ROBERTA: [&str; 7] = ["<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"];
const ALBERT: [&str; 7] = ["[CLS]", "[SEP]", "<unk>", "[SEP]", "<pad>", "[CLS]", "[MASK]"];
const DEBERTA: [&str; 7] = ["[CLS]", "[SEP]", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"];
const XLNET: [&str; 7] = ["<s>", "</s>", "<unk>", "<sep>", "<pad>", "<cls>", "<mask>"];
const LLAMA: [&str; 7] = ["<s>", "</s>", "<unk>", "", "", "", ""];
const GPT2: [&str; 7] = ["<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "", "", "", ""];
const QWEN2: [&str; 7] = ["", "<|endoftext|>", "<|endoftext|>", "", "<|endoftext|>", "", ""];

/// The class that changes nothing.
const GENERIC: Class = Class::new("PreTrainedTokenizer", NONE);

/// The class of files that transformers 5 saved.
const BACKEND: &str = "TokenizersBackend";

const CLASSES: &[Class] = &[
    GENERIC,
    Class::new("AlbertTokenizer", ALBERT).flags(Flags::Mask),
    Class::new("BartTokenizer", ROBERTA).flags(Flags::MaskNormalized).offsets(),
    Class::new("BarthezTokenizer", ROBERTA).flags(Flags::Mask),
    Class::bert("BertTokenizer"),
    Class::new("BigBirdTokenizer", ["<s>", "</s>", "<unk>", "[SEP]", "<pad>", "[CLS]", "[MASK]"])
        .flags(Flags::PlainAndMask(&[0, 1, 2, 3, 4, 5])),
    Class::new("BlenderbotTokenizer", ROBERTA).flags(Flags::Mask).offsets(),
    Class::new("BloomTokenizer", ["<s>", "</s>", "<unk>", "", "<pad>", "", ""]),
    Class::new("CamembertTokenizer", ROBERTA).flags(Flags::Mask).additional(&[
        "<s>NOTUSED",
        "</s>NOTUSED",
        "<unk>NOTUSED",
    ]),
    Class::new("CodeGenTokenizer", GPT2).prefix_space(),
    Class {
        always: &["▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>"],
        ..Class::new("CodeLlamaTokenizer", LLAMA).template(true)
    },
    Class::bert("ConvBertTokenizer"),
    Class::new("DebertaTokenizer", DEBERTA).flags(Flags::Mask).prefix_space(),
    Class::new("DebertaV2Tokenizer", DEBERTA),
    Class::bert("DistilBertTokenizer"),
    Class::bert("ElectraTokenizer"),
    Class::new("FNetTokenizer", ["", "", "<unk>", "[SEP]", "<pad>", "[CLS]", "[MASK]"])
        .flags(Flags::PlainAndMask(&[3, 5])),
    Class { tokens: XLNET, ..Class::bert("FunnelTokenizer") },
    Class::new("GPT2Tokenizer", GPT2).prefix_space(),
    Class::new("GPTNeoXTokenizer", GPT2).template(false).prefix_space(),
    Class::new("GemmaTokenizer", ["<bos>", "<eos>", "<unk>", "", "<pad>", "", ""]).template(true),
    Class::new("HerbertTokenizer", ["", "", "<unk>", "</s>", "<pad>", "<s>", "<mask>"]),
    Class::new("LEDTokenizer", ROBERTA).flags(Flags::MaskNormalized).offsets(),
    Class::bert("LayoutLMTokenizer"),
    Class::new("LlamaTokenizer", LLAMA).template(true),
    Class::new("LongformerTokenizer", ROBERTA).flags(Flags::Mask).offsets(),
    Class::bert("LxmertTokenizer"),
    Class {
        normalizer: Some(BertOptions::Case),
        ..Class::new("MPNetTokenizer", ["<s>", "</s>", "[UNK]", "</s>", "<pad>", "<s>", "<mask>"])
            .flags(Flags::PlainAndMask(&[0, 1, 2, 3, 4, 5]))
    },
    Class::t5("MT5Tokenizer"),
    Class::bert("MobileBertTokenizer"),
    Class::new("MvpTokenizer", ROBERTA).flags(Flags::PlainAndMask(&[0, 1, 2, 3, 4, 5])).offsets(),
    Class::new("OpenAIGPTTokenizer", ["", "", "<unk>", "", "", "", ""]),
    Class::new("Qwen2Tokenizer", QWEN2).flags(Flags::Plain(&[0, 1, 2, 4])),
    Class::bert("RealmTokenizer"),
    Class::new("RemBertTokenizer", ALBERT).flags(Flags::Mask),
    Class::bert("RetriBertTokenizer"),
    Class::new("RobertaTokenizer", ROBERTA).flags(Flags::Mask).offsets(),
    Class { normalizer: Some(BertOptions::Case), ..Class::new("SplinterTokenizer", BERT) }
        .additional(&["[QUESTION]"]),
    Class::bert("SqueezeBertTokenizer"),
    Class::t5("T5Tokenizer"),
    Class::new("XLMRobertaTokenizer", ROBERTA).flags(Flags::Mask),
    Class::new("XLNetTokenizer", XLNET).flags(Flags::Mask).additional(&["<eop>", "<eod>"]),
];

/// Classes that exist in Python alone: transformers does not use `tokenizer.json` with them.
const PYTHON_ONLY: &[&str] = &[
    "BartphoTokenizer",
    "BertGenerationTokenizer",
    "BertJapaneseTokenizer",
    "BertweetTokenizer",
    "BioGptTokenizer",
    "BlenderbotSmallTokenizer",
    "ByT5Tokenizer",
    "CTRLTokenizer",
    "CanineTokenizer",
    "ErnieMTokenizer",
    "EsmTokenizer",
    "FSMTTokenizer",
    "FlaubertTokenizer",
    "GPTNeoXJapaneseTokenizer",
    "GPTSw3Tokenizer",
    "LukeTokenizer",
    "M2M100Tokenizer",
    "MLukeTokenizer",
    "MarianTokenizer",
    "PLBartTokenizer",
    "PerceiverTokenizer",
    "PhobertTokenizer",
    "ProphetNetTokenizer",
    "RoCBertTokenizer",
    "TapasTokenizer",
    "TransfoXLTokenizer",
    "XLMTokenizer",
];

/// Fast classes that change `tokenizer.json` in ways that are not implemented.
const UNSUPPORTED: &[&str] = &[
    "CLIPTokenizer",
    "CohereTokenizer",
    "CpmTokenizer",
    "LayoutLMv2Tokenizer",
    "LayoutLMv3Tokenizer",
    "LayoutXLMTokenizer",
    "MBart50Tokenizer",
    "MBartTokenizer",
    "MarkupLMTokenizer",
    "NllbTokenizer",
    "PegasusTokenizer",
    "ReformerTokenizer",
    "RoFormerTokenizer",
    "SeamlessM4TTokenizer",
    "UdopTokenizer",
    "WhisperTokenizer",
    "XGLMTokenizer",
];

/// The class of a model's tokenizer.
pub(super) struct Resolved {
    /// What it does.
    pub class: Class,
    /// Whether the files are those of transformers 5's `TokenizersBackend`.
    pub backend: bool,
}

/// The name of the class that the files of a model name, or that its `model_type` has; none for other models.
pub(super) fn class_name(config: &JsonFile, model: &JsonFile) -> Result<Option<String>, FileError> {
    for file in [config, model] {
        if let Some(name) = file.text("tokenizer_class")? {
            return Ok(Some(name.into()));
        }
    }
    Ok(match model.text("model_type")? {
        Some("llama" | "mistral") => Some("LlamaTokenizer".into()),
        Some("qwen2" | "qwen3") => Some("Qwen2Tokenizer".into()),
        Some("roberta") => Some("RobertaTokenizer".into()),
        Some("xlm-roberta") => Some("XLMRobertaTokenizer".into()),
        Some("camembert") => Some("CamembertTokenizer".into()),
        Some("bert") => Some("BertTokenizer".into()),
        _ => None,
    })
}

/// Whether transformers has this class in Python alone.
pub(super) fn is_python_only(name: &str) -> bool {
    PYTHON_ONLY.contains(&name)
}

/// The class of a model's tokenizer. Names that transformers does not know have the class that changes nothing.
///
/// # Errors
/// If `tokenizer.json` alone is not what the class makes.
pub(super) fn resolve(config: &JsonFile, model: &JsonFile) -> Result<Resolved, FileError> {
    let name = class_name(config, model)?.unwrap_or_default();
    let base = name.strip_suffix("Fast").unwrap_or(&name);
    let reason = match base {
        _ if is_python_only(base) => "is written in Python alone and does not read tokenizer.json",
        _ if UNSUPPORTED.contains(&base) => "changes tokenizer.json in a way that is not supported",
        _ => {
            let class = CLASSES.iter().find(|class| class.name == base).copied().unwrap_or(GENERIC);
            return Ok(Resolved { class, backend: base == BACKEND });
        }
    };
    let file = if config.get("tokenizer_class").is_some() { config } else { model };
    Err(file.invalid(format!(
        "`tokenizer_class` is {name}, which {reason}; if tokenizer.json is right as it is, set `tokenizer_class` to \
         \"PreTrainedTokenizerFast\" in tokenizer_config.json"
    )))
}
