"""How to train, as plain values. Light, so that the command line shows its help without loading a model library."""

from dataclasses import dataclass

from index_builder.encoder import EMBEDDED


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        base: Hugging Face directory or hub name of a BERT-like model, or the embedded MiniLM.
        architecture: "shared_user", or "joint" for the plain cross-encoder.
        join_layer: First layer in which ads attend to the user; None joins the top third.
        train_layers: "joined" trains the joined layers and the head, and computes what lies below once per ad;
            "all" trains everything. The joint architecture always trains everything.
        behaviour_epochs: Passes over the training rows for the behaviour part, at most.
        behaviour_min_steps: Steps that a small log is read over and over for.
        behaviour_share: Share of `max_minutes` that the behaviour part may take.
        conversion_weight: Weight of the conversion loss beside the click loss, where the log has conversions.
        epochs: Passes over the training rows for the text layers, at most.
        max_minutes: Wall-clock limit of training and validation together; None for none. With a limit the learning
            rate follows the clock, so that two runs are not equal to the last digit.
        min_text_gain: By how much fine-tuning must lower the validation log loss for the text layers to be kept;
            otherwise serving leaves them out and is the faster for it.
        validate_every: Steps between validations.
        validation_rows: Rows of the validation part to use, at most.
        patience: Validations without improvement after which training stops.
        device, precision: as in `ranking.engine.EngineSettings`.
    """

    base: str = EMBEDDED
    architecture: str = "shared_user"
    join_layer: int | None = None
    train_layers: str = "joined"
    max_user_tokens: int = 128
    max_ad_tokens: int = 32
    behaviour_epochs: int = 8
    behaviour_batch: int = 512
    behaviour_min_steps: int = 300
    behaviour_learning_rate: float = 8e-3
    behaviour_share: float = 0.5
    conversion_weight: float = 0.5
    epochs: float = 1.0
    max_minutes: float | None = None
    pairs_per_step: int = 96
    max_ads_per_user: int = 32
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    min_text_gain: float = 0.0005
    validate_every: int = 75
    validation_rows: int = 2000
    patience: int = 3
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
