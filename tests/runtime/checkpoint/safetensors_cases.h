// safetensors files, good and bad, made in code: each rule of the format at both sides of its
// boundary. Every case says what r1run decides; tests/data/safetensors/reference_decisions.txt says
// what the reference reader decides.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <string>
#include <string_view>
#include <vector>

namespace r1::test {

enum class Decision { kAccept, kReject, kAsReference };

struct SafetensorsCase {
  std::string name;
  std::string bytes;
  Decision ours;
  std::string stricter =
      {};  ///< why we refuse what the reference accepts; empty when the decisions must agree
};

inline std::string le64(uint64_t n) {
  std::string out(8, '\0');
  for (size_t i = 0; i < 8; ++i) out[i] = static_cast<char>((n >> (8 * i)) & 0xffu);
  return out;
}
inline std::string st_file(std::string_view header, size_t data_bytes) {
  return le64(header.size()) + std::string(header) + std::string(data_bytes, '\x11');
}
inline std::string st_entry(std::string_view dtype, std::string_view shape,
                            std::string_view offsets) {
  return fmt::format(R"({{"dtype":"{}","shape":{},"data_offsets":{}}})", dtype, shape, offsets);
}
inline std::string st_one(std::string_view dtype, std::string_view shape,
                          std::string_view offsets) {
  return R"({"w":)" + st_entry(dtype, shape, offsets) + "}";
}

/// Three tensors, 20 bytes of data, metadata; the subject of truncations and replacements.
inline std::string st_three_tensor_file() {
  return st_file(
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
      R"("b":{"dtype":"BF16","shape":[4],"data_offsets":[8,16]},)"
      R"("c":{"dtype":"U8","shape":[2,2],"data_offsets":[16,20]}}  )",
      20);
}

inline std::vector<SafetensorsCase> safetensors_cases() {
  constexpr Decision kYes = Decision::kAccept, kNo = Decision::kReject,
                     kSame = Decision::kAsReference;
  std::vector<SafetensorsCase> cases;
  const auto add = [&](std::string name, std::string bytes, Decision d, std::string stricter = {}) {
    cases.push_back({std::move(name), std::move(bytes), d, std::move(stricter)});
  };
  const std::string valid4 = st_entry("F32", "[1]", "[0,4]");

  // ---- sizes (R1-R3, R5)
  for (size_t n = 0; n < 8; ++n) add(fmt::format("size/{}-bytes", n), std::string(n, '\2'), kNo);
  const std::string three = st_three_tensor_file();
  const auto with_n = [&](uint64_t n) { return le64(n) + three.substr(8); };
  for (const uint64_t n :
       {uint64_t{0}, uint64_t{1}, uint64_t{2}, uint64_t{7}, uint64_t{three.size() - 9},
        uint64_t{three.size() - 8}, uint64_t{three.size() - 7}, uint64_t{99'999'999},
        uint64_t{100'000'000}, uint64_t{100'000'001}, uint64_t{1} << 31, (uint64_t{1} << 32) - 1,
        uint64_t{1} << 32, (uint64_t{1} << 63) - 1, uint64_t{1} << 63, ~uint64_t{0} - 8,
        ~uint64_t{0} - 7, ~uint64_t{0}})
    add(fmt::format("size/n-{}", n), with_n(n), kNo);
  add("size/three-tensors", three, kYes);
  add("size/empty-object", st_file("{}", 0), kYes);
  add("size/empty-object-padded", st_file("{}      ", 0), kYes);
  add("size/empty-object-trailing-byte", st_file("{}", 1), kNo);
  add("size/metadata-only", st_file(R"({"__metadata__":{"a":"b"}})", 0), kYes);
  add("size/metadata-only-trailing-byte", st_file(R"({"__metadata__":{"a":"b"}})", 1), kNo);
  for (const size_t n : {0, 1, 3, 5, 8, 4096})
    add(fmt::format("size/4-bytes-wanted-{}-there", n), st_file(R"({"w":)" + valid4 + "}", n), kNo);
  add("size/4-bytes-wanted-4-there", st_file(R"({"w":)" + valid4 + "}", 4), kYes);
  add("size/no-header-8-zero-bytes", std::string(8, '\0'), kNo);
  add("size/big-endian-length", std::string("\0\0\0\0\0\0\0\2{}", 10), kNo);
  add("polyglot/zip-appended",
      st_file(R"({"w":)" + valid4 + "}", 4) + std::string("PK\3\4\24\0", 6), kNo);
  add("polyglot/zip-end-appended", st_file("{}", 0) + "PK\5\6" + std::string(18, '\0'), kNo);
  add("polyglot/elf-prepended",
      "\x7f"
      "ELF\2\1\1" +
          std::string(9, '\0') + st_file("{}", 0),
      kNo);
  add("polyglot/zip-in-header-padding", st_file("{}PK\3\4", 0), kNo);
  add("polyglot/two-files", st_file("{}", 0) + st_file("{}", 0), kNo);
  add("polyglot/pickle", std::string("\x80\2}q\0.", 6) + std::string(20, ' '), kNo);
  add("polyglot/git-lfs-pointer",
      "version https://git-lfs.github.com/spec/v1\noid "
      "sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
      "size 12345\n",
      kNo);
  add("polyglot/html", "<!DOCTYPE html><html><body>404 not found</body></html>", kNo);

  // ---- the JSON text (R4, R6, R12, R13)
  const std::string entry_w = R"({"w":)" + valid4 + "}";
  const auto text = [&](std::string name, std::string header, Decision d,
                        std::string stricter = {}) {
    add("json/" + name, st_file(header, header.find("data_offsets") == std::string::npos ? 0 : 4),
        d, std::move(stricter));
  };
  text("plain", entry_w, kYes);
  for (const char c : {' ', '\t', '\n', '\r'}) {
    text(fmt::format("leading-space-{:02x}", c), std::string(3, c) + entry_w, kYes);
    text(fmt::format("trailing-space-{:02x}", c), entry_w + std::string(3, c), kYes);
  }
  for (const int c : {0x00, 0x01, 0x0b, 0x0c, 0x1f, 0x7f, 0x85, 0xa0, int{'x'}, int{'}'}, int{','},
                      int{'{'}, int{'"'}, int{'0'}}) {
    text(fmt::format("leading-byte-{:02x}", c), std::string(1, static_cast<char>(c)) + entry_w,
         kNo);
    text(fmt::format("trailing-byte-{:02x}", c), entry_w + std::string(1, static_cast<char>(c)),
         kNo);
  }
  text("leading-nbsp", "\xc2\xa0" + entry_w, kNo);
  text("trailing-nul-after-spaces", entry_w + std::string("  \0", 3), kNo);
  text("byte-order-mark", "\xef\xbb\xbf" + entry_w, kNo);
  text("byte-order-mark-behind", entry_w + "\xef\xbb\xbf", kNo);
  text("utf-16", std::string("{\0}\0", 4), kNo);
  for (const std::string_view root : {"", " ", "[]", "null", "true", "1", "\"w\"", "[{}]", "{}{}",
                                      "{} {}", "{", "}", "{]", "nul", "NaN"})
    text(fmt::format("root-{}", root), std::string(root), kNo);
  text("empty-object-inner-space", "{ \n\t\r }", kYes);
  text("spaces-everywhere",
       R"( { "w" : { "dtype" : "F32" , "shape" : [ 1 ] , "data_offsets" : [ 0 , 4 ] } } )", kYes);
  text("trailing-comma-root", R"({"w":)" + valid4 + ",}", kNo);
  text("trailing-comma-entry", R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4],}})", kNo);
  text("trailing-comma-shape", st_one("F32", "[1,]", "[0,4]"), kNo);
  text("trailing-comma-offsets", st_one("F32", "[1]", "[0,4,]"), kNo);
  text("leading-comma-root", R"({,"w":)" + valid4 + "}", kNo);
  text("leading-comma-shape", st_one("F32", "[,1]", "[0,4]"), kNo);
  text("double-comma", st_one("F32", "[1]", "[0,,4]"), kNo);
  text("missing-comma", R"({"w":{"dtype":"F32" "shape":[1],"data_offsets":[0,4]}})", kNo);
  text("missing-colon", R"({"w" {"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", kNo);
  text("single-quotes", R"({'w':{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", kNo);
  text("bare-name", R"({w:{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", kNo);
  text("comment-block", R"({/* */"w":)" + valid4 + "}", kNo);
  text("comment-line", "{//\n\"w\":" + valid4 + "}", kNo);
  text("comment-hash", "{#\n\"w\":" + valid4 + "}", kNo);
  text("number-name", R"({1:)" + valid4 + "}", kNo);
  text("null-name", R"({null:)" + valid4 + "}", kNo);
  const auto name_text = [&](std::string name, std::string_view json_name, Decision d,
                             std::string stricter = {}) {
    text("name-" + name, fmt::format("{{\"{}\":{}}}", json_name, valid4), d, std::move(stricter));
  };
  name_text("empty", "", kYes);
  name_text("space", " ", kYes);
  name_text("dotdot", "../../etc/passwd", kYes);
  name_text("absolute", "/etc/passwd", kYes);
  name_text("newline-escaped", "a\\nb", kYes);
  name_text("ansi-escaped", "\\u001b[31mred", kYes);
  name_text("delete-raw", "\x7f", kYes);
  name_text("nul-escaped", "a\\u0000b", kNo, "a name may not have a NUL");
  name_text("nul-raw", std::string_view("a\0b", 3), kNo);
  name_text("newline-raw", "a\nb", kNo);
  name_text("tab-raw", "a\tb", kNo);
  name_text("escape-raw", "\x1b[31m", kNo);
  name_text("unit-separator-raw", "\x1f", kNo);
  for (const std::string_view e :
       {"\\\"", "\\\\", "\\/", "\\b", "\\f", "\\n", "\\r", "\\t", "\\u0077", "\\u00e9", "\\u20AC",
        "\\ud83d\\ude00", "\\uD83D\\uDE00", "\\ufffd", "\\uffff"})
    name_text(fmt::format("escape-{}", e.substr(1)), e, kYes);
  for (const std::string_view e : {"\\x41", "\\u", "\\u0", "\\u00g0", "\\u 041", "\\u+041", "\\'",
                                   "\\a", "\\0", "\\U0041", "\\ud83d", "\\ud83dx", "\\ud83d\\n",
                                   "\\ude00", "\\ud83d\\ud83d", "\\ud83d\\u0041", "\\ude00\\ud83d"})
    name_text(fmt::format("bad-escape-{}", e.substr(1)), e, kNo);
  text("name-ends-in-backslash", R"({"w\":)" + valid4 + "}", kNo);
  name_text("utf8-2", "\xc3\xa9", kYes);
  name_text("utf8-3", "\xe2\x82\xac", kYes);
  name_text("utf8-4", "\xf0\x9f\x98\x80", kYes);
  name_text("utf8-largest", "\xf4\x8f\xbf\xbf", kYes);
  name_text("utf8-first-of-2", "\xc2\x80", kYes);
  name_text("utf8-first-of-3", "\xe0\xa0\x80", kYes);
  name_text("utf8-before-surrogates", "\xed\x9f\xbf", kYes);
  name_text("utf8-after-surrogates", "\xee\x80\x80", kYes);
  name_text("utf8-noncharacter", "\xef\xbf\xbf", kYes);
  name_text("utf8-first-of-4", "\xf0\x90\x80\x80", kYes);
  for (const std::string_view bad : {"\x80",
                                     "\xbf",
                                     "\xc0\x80",
                                     "\xc1\xbf",
                                     "\xc3",
                                     "\xc3\x28",
                                     "\xe0\x80\x80",
                                     "\xe0\x9f\xbf",
                                     "\xe2\x82",
                                     "\xe2\x28\xac",
                                     "\xed\xa0\x80",
                                     "\xed\xbf\xbf",
                                     "\xf0\x80\x80\x80",
                                     "\xf0\x8f\xbf\xbf",
                                     "\xf0\x9f\x98",
                                     "\xf4\x90\x80\x80",
                                     "\xf5\x80\x80\x80",
                                     "\xf8\x88\x80\x80\x80",
                                     "\xfe",
                                     "\xff"}) {
    std::string hex;
    for (const char c : bad) hex += fmt::format("{:02x}", static_cast<unsigned char>(c));
    name_text("bad-utf8-" + hex, bad, kNo);
  }
  text("bad-utf8-in-padding", entry_w + " \xff", kNo);
  name_text("1024-bytes", std::string(1024, 'n'), kYes);
  name_text("1025-bytes", std::string(1025, 'n'), kNo, "a name has 1024 bytes at most");
  name_text("1-mib", std::string(1 << 20, 'n'), kNo, "a name has 1024 bytes at most");

  // ---- entries (R7, R9)
  const auto body = [&](std::string name, std::string_view value, Decision d,
                        std::string stricter = {}) {
    add("entry/" + name, st_file(fmt::format(R"({{"w":{}}})", value), 4), d, std::move(stricter));
  };
  for (const std::string_view v : {"null", "1", "\"F32\"", "true", "[]", "{}", "[1,2,3]"})
    body(fmt::format("value-{}", v), v, kNo);
  body("as-array", R"(["F32",[1],[0,4]])", kNo,
       "an entry is an object (the reference also takes an array of the fields)");
  body("no-dtype", R"({"shape":[1],"data_offsets":[0,4]})", kNo);
  body("no-shape", R"({"dtype":"F32","data_offsets":[0,4]})", kNo);
  body("no-offsets", R"({"dtype":"F32","shape":[1]})", kNo);
  body("any-order", R"({"data_offsets":[0,4],"shape":[1],"dtype":"F32"})", kYes);
  body("dtype-twice", R"({"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]})", kNo);
  body("dtype-twice-escaped",
       R"({"dtype":"F32","\u0064type":"F32","shape":[1],"data_offsets":[0,4]})", kNo);
  body("shape-twice", R"({"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]})", kNo);
  body("offsets-twice", R"({"dtype":"F32","shape":[1],"data_offsets":[0,4],"data_offsets":[0,4]})",
       kNo);
  body("dtype-null", R"({"dtype":null,"shape":[1],"data_offsets":[0,4]})", kNo);
  body("dtype-number", R"({"dtype":32,"shape":[1],"data_offsets":[0,4]})", kNo);
  body("dtype-object", R"({"dtype":{"F32":null},"shape":[1],"data_offsets":[0,4]})", kNo,
       "a dtype is a string (the reference also takes {\"F32\":null})");
  body("dtype-array", R"({"dtype":["F32"],"shape":[1],"data_offsets":[0,4]})", kNo);
  body("dtype-escaped", R"({"dtype":"F\u0033\u0032","shape":[1],"data_offsets":[0,4]})", kYes);
  body("shape-null", R"({"dtype":"F32","shape":null,"data_offsets":[0,4]})", kNo);
  body("shape-number", R"({"dtype":"F32","shape":1,"data_offsets":[0,4]})", kNo);
  body("shape-string", R"({"dtype":"F32","shape":"1","data_offsets":[0,4]})", kNo);
  body("shape-object", R"({"dtype":"F32","shape":{"0":1},"data_offsets":[0,4]})", kNo);
  body("shape-nested", R"({"dtype":"F32","shape":[[1]],"data_offsets":[0,4]})", kNo);
  body("offsets-null", R"({"dtype":"F32","shape":[1],"data_offsets":null})", kNo);
  body("offsets-object", R"({"dtype":"F32","shape":[1],"data_offsets":{"0":0,"1":4}})", kNo);
  body("offsets-strings", R"({"dtype":"F32","shape":[1],"data_offsets":["0","4"]})", kNo);
  body("offsets-0", R"({"dtype":"F32","shape":[1],"data_offsets":[]})", kNo);
  body("offsets-1", R"({"dtype":"F32","shape":[1],"data_offsets":[0]})", kNo);
  body("offsets-3", R"({"dtype":"F32","shape":[1],"data_offsets":[0,4,4]})", kNo);
  body("extra-field", R"({"dtype":"F32","shape":[1],"data_offsets":[0,4],"note":"x"})", kYes);
  body("extra-field-first",
       R"({"note":[1,{"a":null}],"dtype":"F32","shape":[1],"data_offsets":[0,4]})", kYes);
  body("extra-field-twice", R"({"a":1,"a":2,"dtype":"F32","shape":[1],"data_offsets":[0,4]})",
       kYes);
  body(
      "extra-field-numbers",
      R"({"a":[-0,-1.5e-7,1E+9,0.0,12345678901234567890123],"dtype":"F32","shape":[1],"data_offsets":[0,4]})",
      kYes);
  body("extra-field-literals",
       R"({"a":[true,false,null],"dtype":"F32","shape":[1],"data_offsets":[0,4]})", kYes);
  for (const std::string_view v :
       {"01",  "+1",      ".5",     "1.",         "1e",      "1e+", "-",
        "0x1", "1e999",   "-1e999", "Infinity",   "NaN",     "nul", "True",
        "'a'", "\"\\q\"", "[1,]",   "{\"a\":1,}", "{\"a\"}", "[",   "1 2"})
    body(fmt::format("extra-field-bad-{}", v),
         fmt::format(R"({{"a":{},"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", v), kNo);
  body("extra-field-tiny-number", R"({"a":1e-999,"dtype":"F32","shape":[1],"data_offsets":[0,4]})",
       kSame);
  body("schema-names-uppercase", R"({"DTYPE":"F32","SHAPE":[1],"DATA_OFFSETS":[0,4]})", kNo);
  for (const int depth : {2, 50, 100, 120, 123, 124, 125, 126, 127, 128, 129, 200, 10'000})
    body(fmt::format("extra-field-depth-{}", depth),
         fmt::format(R"({{"a":{}{},"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                     std::string(depth, '['), std::string(depth, ']')),
         kSame);
  add("entry/deep-open", st_file(std::string(1'000'000, '['), 0), kNo);
  add("entry/deep-objects",
      st_file(
          [] {
            std::string s;
            for (int i = 0; i < 100'000; ++i) s += "{\"a\":";
            return s;
          }(),
          0),
      kNo);

  // ---- integers (R10)
  const auto number = [&](std::string_view v, Decision shape, Decision offset,
                          const std::string& stricter = {}) {
    add(fmt::format("integer/shape-{}", v),
        st_file(st_one("U8", fmt::format("[{}]", v), "[0,4]"), 4), shape, stricter);
    add(fmt::format("integer/begin-{}", v),
        st_file(st_one("U8", "[4]", fmt::format("[{},4]", v)), 4), offset, stricter);
    add(fmt::format("integer/end-{}", v), st_file(st_one("U8", "[4]", fmt::format("[0,{}]", v)), 4),
        shape, stricter);
  };
  number("4", kYes, kNo);
  number("0", kNo, kYes);
  for (const std::string_view v : {"4.0",
                                   "4e0",
                                   "40e-1",
                                   "-4",
                                   "-0",
                                   "+4",
                                   "04",
                                   "0x4",
                                   "\"4\"",
                                   "null",
                                   "true",
                                   "[4]",
                                   "4,4",
                                   "",
                                   "1e400",
                                   "0.0",
                                   "-0.0",
                                   "00",
                                   "4_",
                                   "4 4",
                                   "18446744073709551620",
                                   "18446744073709551616",
                                   "18446744073709551615",
                                   "9223372036854775808",
                                   "340282366920938463463374607431768211460",
                                   "281474976710655",
                                   "281474976710656"})
    number(v, kNo, kNo);

  // ---- dtypes (R14) and sizes (R17)
  for (const auto& [dtype, bits] : std::vector<std::pair<std::string, size_t>>{
           {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
           {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
           {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
           {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
           {"I64", 64},        {"U64", 64}}) {
    const size_t bytes = bits;  // of 8 elements
    const auto with = [&](std::string_view shape, size_t end) {
      return st_file(st_one(dtype, shape, fmt::format("[0,{}]", end)), end);
    };
    add(fmt::format("dtype/{}-8", dtype), with("[8]", bytes), kYes);
    add(fmt::format("dtype/{}-2x2x2", dtype), with("[2,2,2]", bytes), kYes);
    add(fmt::format("dtype/{}-8-short", dtype), with("[8]", bytes - 1), kNo);
    add(fmt::format("dtype/{}-8-long", dtype), with("[8]", bytes + 1), kNo);
    add(fmt::format("dtype/{}-empty", dtype), with("[0]", 0), kYes);
    add(fmt::format("dtype/{}-scalar", dtype), with("[]", (bits + 7) / 8),
        bits % 8 == 0 ? kYes : kNo);
    add(fmt::format("dtype/{}-3", dtype), with("[3]", (3 * bits + 7) / 8),
        (3 * bits) % 8 == 0 ? kYes : kNo);
    add(fmt::format("dtype/{}-4", dtype), with("[4]", 4 * bits / 8), kYes);
  }
  for (const std::string_view d :
       {"",        "f32",  "F32 ", " F32", "F31",        "F128",     "FP32",      "float32",
        "bf16",    "Bf16", "U128", "F8",   "F6",         "F4_E2M1",  "F8_E4M3FN", "C128",
        "BOOLEAN", "bool", "I4",   "U4",   "F32\\u0000", "F3\\u00b2"})
    add(fmt::format("dtype/unknown-{}", d), st_file(st_one(d, "[1]", "[0,4]"), 4), kNo);
  const auto extent = [&](std::string name, std::string_view dtype, std::string_view shape,
                          std::string_view offsets, size_t data, Decision d,
                          std::string stricter = {}) {
    add("extent/" + name, st_file(st_one(dtype, shape, offsets), data), d, std::move(stricter));
  };
  extent("scalar", "F32", "[]", "[0,4]", 4, kYes);
  extent("scalar-too-large", "F32", "[]", "[0,8]", 8, kNo);
  extent("rank-16", "F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,4]", 4, kYes);
  extent("rank-17", "F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,4]", 4, kNo,
         "at most 16 dims");
  extent("product-2-64", "U8", "[4294967296,4294967296]", "[0,4]", 4, kNo);
  extent("product-2-64-zero", "U8", "[4294967296,4294967296]", "[0,0]", 0, kNo);
  extent("product-wraps-to-4", "F32", "[4194305,4194305,211106198978564]", "[0,16]", 16, kNo);
  extent("bits-wrap", "F32", "[1152921504606846976]", "[0,0]", 0, kNo);
  extent("bits-wrap-to-4-bytes", "F64", "[2305843009213693953]", "[0,8]", 8, kNo);
  extent("bits-at-2-64", "U8", "[131072,17592186044416]", "[0,4]", 4, kNo);
  extent("zero-first-then-huge", "U8", "[0,281474976710655,281474976710655]", "[0,0]", 0, kYes);
  extent("huge-then-zero", "U8", "[281474976710655,281474976710655,0]", "[0,0]", 0, kNo);
  extent("zero-2-63", "U8", "[0,9223372036854775808,4]", "[0,0]", 0, kNo,
         "integers are below 2^48, as the format's schema says");
  extent("2-63-zero", "U8", "[9223372036854775808,4,0]", "[0,0]", 0, kNo);
  extent("zero-2-48", "U8", "[0,281474976710656]", "[0,0]", 0, kNo,
         "integers are below 2^48, as the format's schema says");
  extent("zero-in-the-middle", "F32", "[3,0,5]", "[0,0]", 0, kYes);
  extent("zero-with-data", "F32", "[0]", "[0,4]", 4, kNo);
  extent("f4-odd", "F4", "[3]", "[0,2]", 2, kNo);
  extent("f4-odd-rounded-down", "F4", "[3]", "[0,1]", 1, kNo);
  extent("f4-even", "F4", "[2,3]", "[0,3]", 3, kYes);
  extent("f6-4", "F6_E2M3", "[4]", "[0,3]", 3, kYes);
  extent("f6-2", "F6_E3M2", "[2]", "[0,2]", 2, kNo);
  extent("shape-larger-than-range", "F32", "[1000,1000]", "[0,4]", 4, kNo);
  extent("range-larger-than-shape", "F32", "[1]", "[0,8]", 8, kNo);
  extent("swapped", "F32", "[1]", "[4,0]", 4, kNo);
  extent("swapped-empty", "F32", "[0]", "[4,0]", 4, kNo);
  extent("first-not-at-0", "F32", "[1]", "[4,8]", 8, kNo);
  extent("beyond-the-end", "F32", "[2]", "[0,8]", 4, kNo);
  extent("far-beyond-the-end", "U8", "[281474976710655]", "[0,281474976710655]", 4, kNo);
  extent("unaligned-is-legal", "U8", "[3]", "[0,3]", 3, kYes);

  // ---- several tensors (R11, R16, R18)
  const auto multi = [&](std::string name,
                         const std::vector<std::pair<std::string, std::string>>& entries,
                         size_t data, Decision d, std::string stricter = {}) {
    std::string h = "{";
    for (const auto& [n, e] : entries)
      h += fmt::format("{}\"{}\":{}", h.size() > 1 ? "," : "", n, e);
    add("several/" + name, st_file(h + "}", data), d, std::move(stricter));
  };
  const auto u8 = [](int begin, int end) {
    return st_entry("U8", fmt::format("[{}]", end - begin), fmt::format("[{},{}]", begin, end));
  };
  multi("in-order", {{"a", u8(0, 4)}, {"b", u8(4, 8)}}, 8, kYes);
  multi("reversed-header", {{"b", u8(4, 8)}, {"a", u8(0, 4)}}, 8, kYes);
  multi("names-against-offsets", {{"a", u8(4, 8)}, {"b", u8(0, 4)}}, 8, kYes);
  multi("hole-at-start", {{"a", u8(1, 4)}, {"b", u8(4, 8)}}, 8, kNo);
  multi("hole-between", {{"a", u8(0, 4)}, {"b", u8(5, 8)}}, 8, kNo);
  multi("hole-at-end", {{"a", u8(0, 4)}, {"b", u8(4, 8)}}, 9, kNo);
  multi("overlap-by-one", {{"a", u8(0, 4)}, {"b", u8(3, 8)}}, 8, kNo);
  multi("same-range", {{"a", u8(0, 4)}, {"b", u8(0, 4)}}, 4, kNo);
  multi("same-begin", {{"a", u8(0, 4)}, {"b", u8(0, 8)}}, 8, kNo);
  multi("contained", {{"a", u8(0, 8)}, {"b", u8(2, 4)}}, 8, kNo);
  multi("second-empty-at-end", {{"a", u8(0, 4)}, {"b", u8(4, 4)}}, 4, kYes);
  multi("empty-at-start", {{"a", u8(0, 0)}, {"b", u8(0, 4)}}, 4, kYes);
  multi("empty-after-full-in-header", {{"b", u8(0, 4)}, {"a", u8(0, 0)}}, 4, kYes);
  multi("empty-within-another", {{"a", u8(0, 4)}, {"b", u8(2, 2)}}, 4, kNo);
  multi("empty-beyond-the-end", {{"a", u8(0, 4)}, {"b", u8(5, 5)}}, 4, kNo);
  multi("many-empty-at-one-offset",
        {{"a", u8(0, 0)},
         {"b", u8(0, 0)},
         {"c", u8(0, 0)},
         {"d", u8(0, 2)},
         {"e", u8(2, 2)},
         {"f", u8(2, 2)}},
        2, kYes);
  multi("all-empty", {{"a", u8(0, 0)}, {"b", u8(0, 0)}}, 0, kYes);
  multi("all-empty-with-data", {{"a", u8(0, 0)}, {"b", u8(0, 0)}}, 1, kNo);
  multi("f32-unaligned", {{"a", u8(0, 1)}, {"b", st_entry("F32", "[1]", "[1,5]")}}, 5, kYes);
  multi("second-cut-short", {{"a", u8(0, 4)}, {"b", u8(4, 8)}}, 7, kNo);
  const std::string twice = "a name appears twice (the reference keeps the last)";
  multi("twice", {{"w", u8(0, 4)}, {"w", u8(0, 4)}}, 4, kNo, twice);
  multi("twice-other-dtype", {{"w", u8(0, 4)}, {"w", st_entry("F32", "[1]", "[0,4]")}}, 4, kNo,
        twice);
  multi("twice-escaped", {{"w", u8(0, 4)}, {"\\u0077", u8(0, 4)}}, 4, kNo, twice);
  multi("twice-next-range", {{"w", u8(0, 4)}, {"w", u8(4, 8)}}, 8, kNo);
  multi("twice-empty-name", {{"", u8(0, 4)}, {"", u8(0, 4)}}, 4, kNo, twice);
  multi("names-differ-in-case", {{"w", u8(0, 4)}, {"W", u8(4, 8)}}, 8, kYes);
  multi("names-differ-in-normal-form", {{"\xc3\xa9", u8(0, 4)}, {"e\xcc\x81", u8(4, 8)}}, 8, kYes);

  // ---- __metadata__ (R8)
  const auto metadata = [&](std::string name, std::string_view value, Decision d,
                            std::string stricter = {}) {
    add("metadata/" + name,
        st_file(fmt::format(R"({{"__metadata__":{},"w":{}}})", value, valid4), 4), d,
        std::move(stricter));
  };
  metadata("empty", "{}", kYes);
  metadata("one", R"({"format":"pt"})", kYes);
  metadata("empty-strings", R"({"":""})", kYes);
  metadata("escapes", R"({"a\n\u00e9":"\ud83d\ude00\u0000"})", kYes);
  metadata("null", "null", kNo, "__metadata__ is an object (the reference takes null)");
  for (const std::string_view v :
       {"1", "true", "[]", "\"a\"", R"([["a","b"]])", R"({"a":1})", R"({"a":null})",
        R"({"a":true})", R"({"a":{}})", R"({"a":["b"]})", R"({"a":{"b":"c"}})", R"({"a":1.5})",
        R"({1:"a"})", R"({"a":"b",})"})
    metadata(fmt::format("bad-{}", v), v, kNo);
  metadata("member-twice", R"({"a":"b","a":"c"})", kNo,
           "a member appears twice (the reference keeps the last)");
  add("metadata/twice", st_file(R"({"__metadata__":{},"__metadata__":{}})", 0), kNo);
  add("metadata/twice-escaped", st_file(R"({"__metadata__":{},"__metadat\u0061__":{}})", 0), kNo);
  add("metadata/escaped", st_file(R"({"__metadat\u0061__":{"a":"b"}})", 0), kYes);
  add("metadata/last", st_file(fmt::format(R"({{"w":{},"__metadata__":{{"a":"b"}}}})", valid4), 4),
      kYes);
  add("metadata/as-tensor", st_file(fmt::format(R"({{"__metadata__":{}}})", valid4), 4), kNo);
  add("metadata/similar-name", st_file(fmt::format(R"({{"__metadata":{}}})", valid4), 4), kYes);

  // ---- every truncation, and every byte of the header replaced
  for (size_t n = 0; n < three.size(); ++n)
    add(fmt::format("truncated/{}", n), three.substr(0, n), kNo);
  const size_t header_end = three.size() - 20;
  for (size_t i = 0; i < header_end; ++i)
    for (const int c : {0x00, 0xff, int{'"'}, int{'{'}, int{'}'}, int{'0'}, int{' '}}) {
      std::string s = three;
      if (s[i] == static_cast<char>(c)) continue;
      s[i] = static_cast<char>(c);
      add(fmt::format("replaced/{}-by-{:02x}", i, c), std::move(s), kSame);
    }
  return cases;
}

}  // namespace r1::test
