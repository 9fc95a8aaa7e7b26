import numpy as np

from eql_d2.drawing.picture import rarest_images


def dataset(*categories_of_images):
    return [
        {"image_id": 10 + i, "annotations": [{"category_id": c} for c in categories]}
        for i, categories in enumerate(categories_of_images)
    ]


def test_images_with_the_rarest_categories_come_first_each_for_another_category():
    image_count = np.array([500, 3, 1, 40])
    images = dataset([0, 0], [2, 0], [2], [1], [], [3])
    assert list(rarest_images(images, image_count, 3)) == [11, 13, 15]
    # No more categories than images are asked for: then the second image of the rarest one, never an empty image.
    assert list(rarest_images(images, image_count, 99)) == [11, 13, 15, 10, 12]
