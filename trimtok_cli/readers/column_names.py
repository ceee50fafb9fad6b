"""The names that people give to the columns of question files, and the endings of media files.

Plain names are without case, blanks and punctuation, as `foreign_formats.plain_name` gives them.
"""

import re

from trimtok_cli.media.images import IMAGE_SUFFIXES
from trimtok_cli.media.video import VIDEO_SUFFIXES

# Columns of reference answers. The first that holds any is used; all ride along in `extra`.
REFERENCES = ("answers", "answer", "gt_answer", "label")

# Endings by which a value is known to name a picture or a video, read or not.
MEDIA_ENDINGS = (
    IMAGE_SUFFIXES
    | VIDEO_SUFFIXES
    | {".svg", ".tga", ".psd", ".jxl", ".pcx", ".m2ts", ".mts", ".npy"}
)

# Plain names of columns that hold pictures.
PICTURES = frozenset(
    f"{noun}{part}{plural}"
    for noun in ("image", "img", "picture", "photo", "pic")
    for part in ("", "path", "file", "name")
    for plural in ("", "s")
) | {"imagefilename", "imagefilepath", "imgfilename"}

VIDEOS = frozenset(
    f"{noun}{part}"
    for noun in ("video", "clip")
    for part in ("", "s", "path", "file", "name", "filename", "url")
)

# Plain names of columns that hold a picture or anything else.
FILES = frozenset(
    ("filename", "filenames", "filepath", "filepaths", "file", "files", "path", "paths")
)

MAYBE_FILES = frozenset(("url", "imageid", "imgid", "uri", "src", "media"))

# Plain names of columns that hold a picture in a form that is not read.
ADDRESSES = frozenset(
    ("imageurl", "imageurls", "imgurl", "imguri", "imageuri", "pictureurl", "photourl")
)

NOT_FILES = frozenset(
    ("imageid", "imgid", "imagebytes", "imagebase64", "imageb64", "imagedata", "videoid")
)

LIKE_QUESTIONS = frozenset(
    ("prompt", "query", "instruction", "questions", "input", "ask", "q", "caption", "sentence")
)

# Plain names of columns that hold one more picture: image2, video_2.
NUMBERED = re.compile(r"(image|img|picture|photo|pic|video|clip)s?\d+")

# image_b, image_right, second_image
FURTHER = re.compile(
    r"(image|img|picture|photo|pic|video|clip)s?([a-z]|left|right|before|after|first|second|third)"
    r"|(left|right|before|after|first|second|third|other|reference|ref)"
    r"(image|img|picture|photo|pic|video|clip)s?"
)

HINTS = re.compile(r"image|img|pic|photo|video|clip|file|path|url|media|pixel")
