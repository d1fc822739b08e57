"""Tables of images with one mistake each, and what is to be said of it."""

MISTAKES = [
    ("image_id,level\na,1\n", r"no column 'grade' for grade\. It has: image_id, level\. .* is: --grade COLUMN\."),
    ("name,grade\na,1\n", r"no column 'image_id' or 'file' for image_id or file\. It has: name, grade"),
    ("name,level\na,1\n", r"no column 'grade' for grade, and no column .*: --grade COLUMN, --image-id COLUMN, --file "),
    ("image_id,grade,grade\na,1,1\n", "two columns 'grade'"),
    ("image_id,grade\na,1\nb,2\n\na,1\n", "row 5: image_id 'a' is in row 2 already"),
    ("image_id,file,grade\nx,a.png,1\ny,a.png,1\n", r"row 3: file 'a\.png' is in row 2 already"),
    ("image_id,grade\na,1\nb,5\n", "row 3: grade is '5'; accepted are 0, 1, 2, 3, 4"),
    ("image_id,grade\na,mild\n", "row 2: grade is 'mild'"),
    ("image_id,grade\na,1.5\n", r"row 2: grade is '1\.5'"),
    ("image_id,grade,eye\na,1,both\n", "row 2: eye is 'both'; accepted are left, right"),
    ("image_id,grade\n,1\n", "row 2: no image_id and no file"),
    ("image_id,grade\na,1,surplus\n", "row 2 has 3 fields, the header 2"),
    ('image_id,grade\n"a,1\n', "not CSV"),
    ("image_id,grade\n", "no rows"),
    ("", "is empty"),
    ("image_id,grade\na,.0\n", r"row 2: grade is '\.0'"),
    ("file,grade\n/,1\n", "row 2: file is '/', which names no file"),
]
