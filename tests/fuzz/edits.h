// What the targets for damaged files share: an input is a list of edits of a good file.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

using bytes = std::vector<uint8_t>;

inline bytes read_file(const std::string & path) {
    std::ifstream file(path, std::ios::binary);
    return bytes(std::istreambuf_iterator<char>(file), {});
}

inline void write_file(const std::string & path, const bytes & data) {
    std::ofstream(path, std::ios::binary).write((const char *) data.data(), (std::streamsize) data.size());
}

inline std::string variable(const char * name) {
    const char * value = std::getenv(name);
    if (!value) {
        std::fprintf(stderr, "%s is not set\n", name);
        std::exit(2);
    }
    return value;
}

// Eight bytes an edit: what (1), where (3, from the front or, less finely, anywhere), and four new bytes.
inline bytes edited(bytes file, const uint8_t * data, size_t size, size_t front) {
    for (; size >= 8 && !file.empty(); data += 8, size -= 8) {
        const size_t where = data[1] | data[2] << 8 | data[3] << 16;
        const size_t at = data[0] & 1 ? where % file.size() : where % std::min(front, file.size());
        switch (data[0] >> 1 & 3) {
            case 0:
                file[at] = data[4];
                break;
            case 1:
                std::memcpy(file.data() + at, data + 4, std::min<size_t>(4, file.size() - at));
                break;
            case 2:
                file.resize(at);
                break;
            case 3:
                file.insert(file.begin() + (ptrdiff_t) at, data + 4, data + 8);
                break;
        }
    }
    return file;
}
