"""A data set of products, as a schema declares it: an image, two texts, two numbers, one category each."""

from genre_dist.schema import Field, Labels, Schema

SCHEMA = Schema(
    id="sku",
    split_by="sku",
    labels=Labels(column="category", choose="one"),
    fields=(
        Field(name="front", kind="image"),
        Field(name="title", kind="text", columns=("title",)),
        Field(name="about", kind="text", columns=("description",)),
        Field(name="facts", kind="numbers", columns=("price", "weight")),
    ),
    sample="product",
)
