# cmake -DIN=file -DOUT=file.cpp -DNAME=symbol -P embed.cmake: a file's bytes as a C++ array, without a tool beyond CMake.
file(READ ${IN} hex HEX)
string(LENGTH "${hex}" digits)
math(EXPR bytes "${digits} / 2")
string(REGEX REPLACE "([0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f])"
  "\\1\n" hex "${hex}")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," hex "${hex}")
file(WRITE ${OUT} "// Made from ${NAME} by embed.cmake at build time.
extern const unsigned char ${NAME}[];
extern const unsigned long ${NAME}_bytes;
const unsigned char ${NAME}[] = {
${hex}
0};
const unsigned long ${NAME}_bytes = ${bytes};
")
