"""Figures of the LLMEmbed paper (Liu et al., ACL 2024, arXiv 2406.03725), with its own backbones on an A100-40G.

    SETS       our names of the data sets, in the paper's order
    TABLE_2    (method, backbone) -> accuracies in the order of SETS
    TABLE_3    (method, stage) -> seconds
    TABLE_4    (method, stage) -> kilowatt hours
    TABLE_5    (method, what) -> tokens or dollars
    MEANS      (table, method) -> the mean over the sets that the paper prints
    MAX_TOKENS tokens of a text, by set; ENCODER_TOKENS those of BERT and RoBERTa (released scripts)

and what Sparsify-then-Classify (arXiv 2311.15983) says:

    STC_CLAIMS    its claims, in our words
    STC_FIGURES   (metric, checkpoint, line, set) -> its figure; empty as long as none is at hand

The paper calls IMDb "MR". CARP's .9074 with GPT-3 on MR is very likely Pang and Lee's sentences, another data set, and
is left out. These models are 100 to 1,000 times larger than ours: the table says what the method reaches, not what ours
should.
"""

SETS = ("sst2", "imdb", "ag_news", "r8", "r52")

TABLE_2: dict[tuple[str, str], tuple[float | None, ...]] = {
    ("PLM", "BERT-large"): (0.8761, 0.8130, 0.8216, 0.8250, 0.6581),
    ("PLM", "RoBERTa-large"): (0.9025, 0.9346, 0.9441, 0.9676, 0.4217),
    ("IO prompt", "LLaMA2-7B"): (0.8922, 0.9065, 0.7420, 0.2481, 0.1869),
    ("CARP", "LLaMA2-7B"): (0.8842, 0.8394, 0.8518, 0.7510, 0.7305),
    ("CARP", "GPT-3 175B"): (0.9569, None, 0.9525, 0.9783, 0.9627),
    ("llmembed-1", "LLaMA2-7B"): (0.9518, 0.9522, 0.9571, 0.9794, 0.9455),
    ("llmembed-2", "LLaMA2-7B"): (0.9530, 0.9545, 0.9566, 0.9794, 0.9533),
    ("llmembed-3", "LLaMA2-7B"): (0.9530, 0.9517, 0.9555, 0.9799, 0.9486),
    ("llmembed-4", "LLaMA2-7B"): (0.9518, 0.9537, 0.9359, 0.9785, 0.4217),
    ("llmembed-5", "LLaMA2-7B + BERT"): (0.9553, 0.9543, 0.9554, 0.9799, 0.9517),
    ("llmembed-6", "LLaMA2-7B + BERT"): (0.9530, 0.9526, 0.9553, 0.9794, 0.9502),
    ("llmembed-7", "LLaMA2-7B + BERT"): (0.9495, 0.9531, 0.9364, 0.9781, 0.8501),
    ("llmembed-8", "LLaMA2-7B + RoBERTa"): (0.9541, 0.9547, 0.9562, 0.9808, 0.9544),
    ("llmembed-9", "LLaMA2-7B + RoBERTa"): (0.9537, 0.9538, 0.9555, 0.9794, 0.9467),
    ("llmembed-10", "LLaMA2-7B + RoBERTa"): (0.9507, 0.9536, 0.9491, 0.9790, 0.4217),
    ("llmembed-11", "LLaMA2-7B + BERT + RoBERTa"): (0.9553, 0.9534, 0.9574, 0.9808, 0.9548),
    ("llmembed-12", "LLaMA2-7B + BERT + RoBERTa"): (0.9541, 0.9542, 0.9555, 0.9799, 0.9529),
    ("llmembed-13", "LLaMA2-7B + BERT + RoBERTa"): (0.9484, 0.9540, 0.9505, 0.9785, 0.9326),
    ("llmembed-14", "LLaMA2-7B + BERT + RoBERTa"): (0.9553, 0.9533, 0.9549, 0.9794, 0.8895),
    ("llmembed-15", "LLaMA2-7B + BERT + RoBERTa"): (0.9576, 0.9549, 0.9583, 0.9822, 0.9568),
}

TABLE_3: dict[tuple[str, str], tuple[int, ...]] = {
    ("CARP", "clues and reasoning"): (244453, 154347, 480772, 34127, 30836),
    ("CARP", "retrieval"): (1494, 934, 2711, 123, 148),
    ("CARP", "inference"): (40322, 498305, 351120, 110277, 130799),
    ("CARP", "all"): (286269, 653586, 834603, 144527, 161783),
    ("LLMEmbed", "reading train"): (810, 20625, 2944, 630, 759),
    ("LLMEmbed", "reading test"): (10, 2001, 189, 255, 297),
    ("LLMEmbed", "training"): (510, 313, 897, 68, 69),
    ("LLMEmbed", "inference"): (1, 2, 2, 1, 1),
    ("LLMEmbed", "all"): (1331, 22941, 4031, 954, 1125),
}

TABLE_4: dict[tuple[str, str], tuple[float, ...]] = {
    ("CARP", "clues and reasoning"): (11.54, 7.29, 22.70, 1.61, 1.46),
    ("CARP", "retrieval"): (0.10, 0.06, 0.19, 0.01, 0.01),
    ("CARP", "inference"): (2.13, 26.30, 18.53, 5.82, 6.90),
    ("CARP", "all"): (13.77, 33.65, 41.42, 7.44, 8.37),
    ("LLMEmbed", "reading"): (0.05, 1.51, 0.21, 0.06, 0.07),
    ("LLMEmbed", "training and inference"): (0.01, 0.004, 0.01, 0.0009, 0.0009),
    ("LLMEmbed", "all"): (0.06, 1.51, 0.22, 0.06, 0.07),
}

TABLE_5: dict[tuple[str, str], tuple[float, ...]] = {
    ("CARP", "tokens of clues and reasoning"): (22227252, 41993238, 32010577, 2243198, 4024957),
    ("CARP", "tokens of inference"): (6492145, 235107723, 75016765, 33625747, 45442485),
    ("CARP", "tokens"): (28719397, 277100961, 107027342, 35868945, 49467442),
    ("CARP", "dollars for tokens"): (57.44, 554.20, 214.05, 71.74, 98.93),
    ("LLMEmbed", "dollars for electricity"): (0.0039, 0.09815, 0.0143, 0.0039, 0.00455),
}

MEANS: dict[tuple[int, str], float] = {
    (3, "CARP"): 416161,
    (3, "LLMEmbed"): 6076,
    (4, "CARP"): 20.93,
    (4, "LLMEmbed"): 0.38,
    (5, "CARP"): 199.27,
    (5, "LLMEmbed"): 0.025,
}

MAX_TOKENS = {"sst2": 128, "imdb": 3000, "ag_news": 256, "r8": 1024, "r52": 1024}
ENCODER_TOKENS = 512

STC_CLAIMS = (
    "stc is better than the last layer alone for every model and data set tried",
    "it comes close to fine-tuning all weights",
    "it is cheaper to train, and through early layers cheaper to ask",
    "fine-tuned checkpoints gain from it too",
)

STC_FIGURES: dict[tuple[str, str, str, str], float] = {}
