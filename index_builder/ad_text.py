"""What an index version reads of an ad."""

from records.ads import Ad


def embedding_text(ad: Ad) -> str:
    """The text of an ad that its vector is made from, and whose words are searched."""
    parts = (ad.title, ad.body, ", ".join(ad.keywords), ad.category, ad.advertiser)
    return ". ".join(part.strip() for part in parts if part.strip())
