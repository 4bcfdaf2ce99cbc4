// One pass of a decoder-only network of the Llama family over a handful of tokens: the kernels of the native runtime.
//
// What is special here:
//
// * A row of the result does not depend on the other rows. Every token is computed by the same operations in the same
//   order whether it is scored alone, in a tree or in a batch, so a draft is verified with the very numbers that plain
//   decoding would have seen, bit for bit.
// * Weights are packed so that eight (or sixteen) output rows lie in the lanes of a vector. One token reads every weight
//   once; up to four tokens share each unpacked vector.
// * Quantised weights meet activations quantised to 8 bits in groups of 32 (as llama.cpp does it), in integer arithmetic.
//
// Plain C interface, no library but OpenMP. `network.py` describes the structures and calls `run_layers` and `product`;
// the tests compare all of it with transformers.

#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <omp.h>
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define USE_AVX2 1
#include <immintrin.h>
#endif

namespace {

// -- eight floats -----------------------------------------------------------------------------------------------------

#ifdef USE_AVX2
using f8 = __m256;
inline f8 load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, f8 v) { _mm256_storeu_ps(p, v); }
inline f8 all(float v) { return _mm256_set1_ps(v); }
inline f8 zero() { return _mm256_setzero_ps(); }
inline f8 fma(f8 a, f8 b, f8 c) { return _mm256_fmadd_ps(a, b, c); }
inline f8 max8(f8 a, f8 b) { return _mm256_max_ps(a, b); }
inline f8 min8(f8 a, f8 b) { return _mm256_min_ps(a, b); }
inline f8 half(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline void store(uint16_t* p, f8 v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, 0)); }
inline f8 brain(const uint16_t* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
inline f8 nearest(f8 v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline f8 power_of_two(f8 n) {  // n whole numbers from -126 to 127
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline f8 magnitude(f8 v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
#else
typedef float f8 __attribute__((vector_size(32)));
typedef int32_t i8x __attribute__((vector_size(32)));
inline f8 load(const float* p) { f8 v; std::memcpy(&v, p, 32); return v; }
inline void store(float* p, f8 v) { std::memcpy(p, &v, 32); }
inline f8 all(float v) { return f8{v, v, v, v, v, v, v, v}; }
inline f8 zero() { return all(0.0f); }
inline f8 fma(f8 a, f8 b, f8 c) { return a * b + c; }
inline f8 max8(f8 a, f8 b) { return a > b ? a : b; }
inline f8 min8(f8 a, f8 b) { return a < b ? a : b; }
inline f8 half(const uint16_t* p) {
    f8 v;
    for (int i = 0; i < 8; ++i) { _Float16 h; std::memcpy(&h, p + i, 2); v[i] = static_cast<float>(h); }
    return v;
}
inline void store(uint16_t* p, f8 v) {
    for (int i = 0; i < 8; ++i) { const _Float16 h = static_cast<_Float16>(v[i]); std::memcpy(p + i, &h, 2); }
}
inline f8 brain(const uint16_t* p) {
    i8x bits;
    for (int i = 0; i < 8; ++i) bits[i] = static_cast<int32_t>(static_cast<uint32_t>(p[i]) << 16);
    return reinterpret_cast<f8>(bits);
}
inline f8 nearest(f8 v) { for (int i = 0; i < 8; ++i) v[i] = std::nearbyintf(v[i]); return v; }
inline f8 power_of_two(f8 n) {
    i8x bits;
    for (int i = 0; i < 8; ++i) bits[i] = (static_cast<int32_t>(n[i]) + 127) << 23;
    return reinterpret_cast<f8>(bits);
}
inline f8 magnitude(f8 v) { for (int i = 0; i < 8; ++i) v[i] = std::fabs(v[i]); return v; }
#endif

inline f8 load(const uint16_t* p) { return half(p); }

inline float sum(f8 v) {  // always in this order
    float x[8];
    store(x, v);
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

inline float largest(f8 v) {
    float x[8];
    store(x, v);
    float top = x[0];
    for (int i = 1; i < 8; ++i) top = x[i] > top ? x[i] : top;
    return top;
}

// exp by 2^n * 2^f, f in [-1/2, 1/2], with a polynomial of degree 6: within 2 units in the last place.
inline f8 exp8(f8 x) {
    x = min8(max8(x, all(-87.0f)), all(88.0f));
    const f8 n = nearest(x * all(1.44269504088896341f));
    f8 r = fma(n, all(-0.693359375f), x);
    r = fma(n, all(2.12194440e-4f), r);
    f8 p = all(1.9875691500e-4f);
    p = fma(p, r, all(1.3981999507e-3f));
    p = fma(p, r, all(8.3334519073e-3f));
    p = fma(p, r, all(4.1665795894e-2f));
    p = fma(p, r, all(1.6666665459e-1f));
    p = fma(p, r, all(5.0000001201e-1f));
    p = fma(p, r * r, r + all(1.0f));
    return p * power_of_two(n);
}

// -- activations ------------------------------------------------------------------------------------------------------

constexpr int GROUP = 32;

struct Acts {      // the input of a product: [tokens, k] in floats, and in 8 bits where a weight asks for it
    float* x;
    int8_t* q;     // [tokens, k]
    float* scale;  // [tokens, k / 32]
    float* total;  // [tokens, k / 32]: scale * sum of q
    int64_t k;
};

inline void quantise_group(const float* x, int8_t* q, float* scale, float* total) {
    f8 v[4], top = zero();
    for (int i = 0; i < 4; ++i) {
        v[i] = load(x + 8 * i);
        top = max8(top, magnitude(v[i]));
    }
    const float most = largest(top);
    const float inverse = most > 0 ? 127.0f / most : 0.0f;
    *scale = most / 127.0f;
    int whole = 0;
    for (int i = 0; i < 4; ++i) {
        float rounded[8];
        store(rounded, nearest(v[i] * all(inverse)));
        for (int j = 0; j < 8; ++j) {
            const int value = static_cast<int>(rounded[j]);
            q[8 * i + j] = static_cast<int8_t>(value);
            whole += value;
        }
    }
    *total = *scale * static_cast<float>(whole);
}

inline void quantise_row(const Acts& a, int64_t token) {
    const int64_t groups = a.k / GROUP;
    for (int64_t g = 0; g < groups; ++g)
        quantise_group(a.x + token * a.k + g * GROUP, a.q + token * a.k + g * GROUP, a.scale + token * groups + g,
                       a.total + token * groups + g);
}

// -- products ---------------------------------------------------------------------------------------------------------

enum Kind : int32_t {
    F32 = 0,   // [n / 16][k][16] floats
    F16 = 1,   // the same in half precision
    BF16 = 2,  // the same in bfloat16
    Q4 = 3,    // [n / 8][k / 32] Block4: w = d q + m, q from 0 to 15
    Q4F = 4,   // the same with scales in single precision (what Q4_K's products need)
    Q8 = 5,    // [n / 8][k / 32] Block8: w = d q
    Q8H = 6,   // [n / 8][k / 32] Block8H: w = d q, a scale for each 16 weights (Q6_K)
};

struct Matrix {
    const void* data;
    const float* bias;  // [n] or null
    int32_t n, k, kind, reserved;
};

// Byte 32 j + 4 r + i of q holds columns 8 j + i (low four bits) and 8 j + 4 + i (high four bits) of row r.
struct Block4 { uint8_t q[128]; uint16_t d[8], m[8]; };
struct Block4F { uint8_t q[128]; float d[8], m[8]; };
// Byte 32 j + 4 r + i of q holds column 4 j + i of row r.
struct Block8 { int8_t q[256]; uint16_t d[8]; };
struct Block8H { int8_t q[256]; float d[2][8]; };

#ifdef USE_AVX2
// Four neighbouring columns of all eight rows, times the same four activations: sums of two, in 16 bits.
inline __m256i four(const int8_t* x) {
    int32_t raw;
    std::memcpy(&raw, x, 4);
    return _mm256_set1_epi32(raw);
}
// Compilers regroup sums of integers, and then have more of them at a time than there are registers.
inline void in_this_order(__m256i& v) { asm volatile("" : "+x"(v)); }
inline f8 to_float(__m256i pairs) { return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))); }
#endif

template <class Block, int T>
inline void rows4(const Block* blocks, int64_t groups, const int8_t* const* q, const float* const* scale,
                  const float* const* total, f8* acc) {
    for (int t = 0; t < T; ++t) acc[t] = zero();
    for (int64_t g = 0; g < groups; ++g) {
        const Block& b = blocks[g];
        f8 dots[T];
#ifdef USE_AVX2
        const __m256i low = _mm256_set1_epi8(15);
        __m256i pairs[T];
        for (int j = 0; j < 4; ++j) {
            const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b.q + 32 * j));
            const __m256i first = _mm256_and_si256(raw, low);
            const __m256i second = _mm256_and_si256(_mm256_srli_epi16(raw, 4), low);
            // At most 8 * 2 * 15 * 127 = 30,480 a lane: 16 bits suffice for the whole group.
            for (int t = 0; t < T; ++t) {
                const int8_t* x = q[t] + GROUP * g + 8 * j;
                const __m256i one = _mm256_maddubs_epi16(first, four(x)), two = _mm256_maddubs_epi16(second, four(x + 4));
                pairs[t] = j ? _mm256_add_epi16(pairs[t], _mm256_add_epi16(one, two)) : _mm256_add_epi16(one, two);
                in_this_order(pairs[t]);
            }
        }
        for (int t = 0; t < T; ++t) dots[t] = to_float(pairs[t]);
#else
        for (int t = 0; t < T; ++t) {
            int32_t whole[8] = {0};
            const int8_t* x = q[t] + GROUP * g;
            for (int j = 0; j < 4; ++j)
                for (int r = 0; r < 8; ++r)
                    for (int i = 0; i < 4; ++i) {
                        const int raw = b.q[32 * j + 4 * r + i];
                        whole[r] += (raw & 15) * x[8 * j + i] + (raw >> 4) * x[8 * j + 4 + i];
                    }
            float out[8];
            for (int r = 0; r < 8; ++r) out[r] = static_cast<float>(whole[r]);
            dots[t] = load(out);
        }
#endif
        const f8 d = load(b.d), m = load(b.m);
        for (int t = 0; t < T; ++t) {
            acc[t] = fma(dots[t] * d, all(scale[t][g]), acc[t]);
            acc[t] = fma(m, all(total[t][g]), acc[t]);
        }
    }
}

// Columns [first, first + 4 * count) of one group: integer dots of eight rows.
template <int T>
inline void dots8(const int8_t* weights, int first, int count, const int8_t* const* q, int64_t base, f8* dots) {
#ifdef USE_AVX2
    __m256i whole[T];
    for (int t = 0; t < T; ++t) whole[t] = _mm256_setzero_si256();
    const __m256i ones = _mm256_set1_epi16(1);
    for (int j = first; j < first + count; ++j) {
        const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + 32 * j));
        const __m256i positive = _mm256_abs_epi8(w);
        for (int t = 0; t < T; ++t) {
            // The product wants one side without a sign: the weights' goes to the activations.
            const __m256i x = _mm256_sign_epi8(four(q[t] + base + 4 * j), w);
            whole[t] = _mm256_add_epi32(whole[t], _mm256_madd_epi16(_mm256_maddubs_epi16(positive, x), ones));
            in_this_order(whole[t]);
        }
    }
    for (int t = 0; t < T; ++t) dots[t] = _mm256_cvtepi32_ps(whole[t]);
#else
    for (int t = 0; t < T; ++t) {
        int32_t whole[8] = {0};
        for (int j = first; j < first + count; ++j)
            for (int r = 0; r < 8; ++r)
                for (int i = 0; i < 4; ++i) whole[r] += weights[32 * j + 4 * r + i] * q[t][base + 4 * j + i];
        float out[8];
        for (int r = 0; r < 8; ++r) out[r] = static_cast<float>(whole[r]);
        dots[t] = load(out);
    }
#endif
}

template <int T>
inline void rows8(const Block8* blocks, int64_t groups, const int8_t* const* q, const float* const* scale, f8* acc) {
    for (int t = 0; t < T; ++t) acc[t] = zero();
    for (int64_t g = 0; g < groups; ++g) {
        f8 dots[T];
        dots8<T>(blocks[g].q, 0, 8, q, GROUP * g, dots);
        const f8 d = load(blocks[g].d);
        for (int t = 0; t < T; ++t) acc[t] = fma(dots[t] * d, all(scale[t][g]), acc[t]);
    }
}

template <int T>
inline void rows8h(const Block8H* blocks, int64_t groups, const int8_t* const* q, const float* const* scale, f8* acc) {
    for (int t = 0; t < T; ++t) acc[t] = zero();
    for (int64_t g = 0; g < groups; ++g)
        for (int part = 0; part < 2; ++part) {
            f8 dots[T];
            dots8<T>(blocks[g].q, 4 * part, 4, q, GROUP * g, dots);
            const f8 d = load(blocks[g].d[part]);
            for (int t = 0; t < T; ++t) acc[t] = fma(dots[t] * d, all(scale[t][g]), acc[t]);
        }
}

inline void put(float* out, f8 v, int64_t first, int64_t n, const float* bias, bool add) {
    float values[8];
    store(values, v);
    const int64_t count = n - first < 8 ? n - first : 8;
    for (int64_t i = 0; i < count; ++i) {
        const float value = bias ? values[i] + bias[first + i] : values[i];
        out[first + i] = add ? out[first + i] + value : value;
    }
}

template <int T>
void quantised(const Matrix& w, const Acts& a, int64_t token, float* out, int64_t stride, bool add, int64_t begin,
               int64_t end) {
    const int64_t groups = w.k / GROUP;
    const int8_t* q[T];
    const float *scale[T], *total[T];
    for (int t = 0; t < T; ++t) {
        q[t] = a.q + (token + t) * a.k;
        scale[t] = a.scale + (token + t) * groups;
        total[t] = a.total + (token + t) * groups;
    }
    for (int64_t r = begin; r < end; ++r) {
        f8 acc[T];
        switch (w.kind) {
            case Q4: rows4<Block4, T>(static_cast<const Block4*>(w.data) + r * groups, groups, q, scale, total, acc); break;
            case Q4F: rows4<Block4F, T>(static_cast<const Block4F*>(w.data) + r * groups, groups, q, scale, total, acc); break;
            case Q8: rows8<T>(static_cast<const Block8*>(w.data) + r * groups, groups, q, scale, acc); break;
            default: rows8h<T>(static_cast<const Block8H*>(w.data) + r * groups, groups, q, scale, acc); break;
        }
        for (int t = 0; t < T; ++t) put(out + (token + t) * stride, acc[t], 8 * r, w.n, w.bias, add);
    }
}

inline f8 weight(const float* p) { return load(p); }
struct Half { uint16_t bits; };
struct Brain { uint16_t bits; };
inline f8 weight(const Half* p) { return half(&p->bits); }
inline f8 weight(const Brain* p) { return brain(&p->bits); }

template <class W, int T>
void floating(const Matrix& w, const Acts& a, int64_t token, float* out, int64_t stride, bool add, int64_t begin,
              int64_t end) {
    const float* x[T];
    for (int t = 0; t < T; ++t) x[t] = a.x + (token + t) * a.k;
    for (int64_t r = begin; r < end; ++r) {
        const W* rows = static_cast<const W*>(w.data) + r * 16 * w.k;
        f8 upper[T], lower[T];
        for (int t = 0; t < T; ++t) upper[t] = lower[t] = zero();
        for (int64_t c = 0; c < w.k; ++c) {
            const f8 first = weight(rows + 16 * c), second = weight(rows + 16 * c + 8);
            for (int t = 0; t < T; ++t) {
                const f8 value = all(x[t][c]);
                upper[t] = fma(first, value, upper[t]);
                lower[t] = fma(second, value, lower[t]);
            }
        }
        for (int t = 0; t < T; ++t) {
            float* row = out + (token + t) * stride;
            put(row, upper[t], 16 * r, w.n, w.bias, add);
            if (16 * r + 8 < w.n) put(row, lower[t], 16 * r + 8, w.n, w.bias, add);
        }
    }
}

inline bool needs_integers(const Matrix& w) { return w.kind >= Q4; }

template <int T>
void some_tokens(const Matrix& w, const Acts& a, int64_t token, float* out, int64_t stride, bool add, int64_t begin,
                 int64_t end) {
    switch (w.kind) {
        case F32: floating<float, T>(w, a, token, out, stride, add, begin, end); break;
        case F16: floating<Half, T>(w, a, token, out, stride, add, begin, end); break;
        case BF16: floating<Brain, T>(w, a, token, out, stride, add, begin, end); break;
        default: quantised<T>(w, a, token, out, stride, add, begin, end); break;
    }
}

// A thread's share of out[tokens, n] (+)= a @ w^T + bias. Called by all threads of a team; ends without a barrier.
void share(const Matrix& w, const Acts& a, int64_t tokens, float* out, int64_t stride, bool add) {
    const int64_t lanes = w.kind <= BF16 ? 16 : 8, units = (w.n + lanes - 1) / lanes;
    const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t begin = units * me / team, end = units * (me + 1) / team;
    // Few rows of the matrix at a time, for all tokens: they stay in the nearest cache.
    const int64_t step = tokens > 4 ? 4 : units;
    for (int64_t r = begin; r < end; r += step) {
        const int64_t last = r + step < end ? r + step : end;
        int64_t t = 0;
        // Eight tokens share what is unpacked; with floats there are too few registers for that.
        if (needs_integers(w))
            for (; t + 8 <= tokens; t += 8) quantised<8>(w, a, t, out, stride, add, r, last);
        for (; t + 4 <= tokens; t += 4) some_tokens<4>(w, a, t, out, stride, add, r, last);
        switch (tokens - t) {
            case 3: some_tokens<3>(w, a, t, out, stride, add, r, last); break;
            case 2: some_tokens<2>(w, a, t, out, stride, add, r, last); break;
            case 1: some_tokens<1>(w, a, t, out, stride, add, r, last); break;
            default: break;
        }
    }
}

// -- the rest of a layer ----------------------------------------------------------------------------------------------

// y = x / sqrt(mean(x^2) + eps) * w; y may be x.
inline void norm_row(const float* x, const float* w, float* y, int64_t d, float eps) {
    f8 squares = zero();
    int64_t i = 0;
    for (; i + 8 <= d; i += 8) { const f8 v = load(x + i); squares = fma(v, v, squares); }
    float whole = sum(squares);
    for (; i < d; ++i) whole += x[i] * x[i];
    const float factor = 1.0f / std::sqrt(whole / static_cast<float>(d) + eps);
    for (i = 0; i + 8 <= d; i += 8) store(y + i, load(x + i) * all(factor) * load(w + i));
    for (; i < d; ++i) y[i] = x[i] * factor * w[i];
}

}  // namespace

constexpr int64_t MOST_TOGETHER = 8;  // tokens whose attention is computed with one reading of the keys

extern "C" {

struct Layer {
    Matrix q, k, v, o, gate, up, down;
    const float *norm_attention, *norm_after_attention, *norm_mlp, *norm_after_mlp;  // [d]; the second and fourth may be null
    const float *norm_q, *norm_k;                                                    // [head_dim] or null
    const float *cosine, *sine;                                                      // [positions, head_dim / 2]
    float eps, scale, softcap;
    int32_t window;  // positions that a token sees, itself included; 0 for all
    int32_t activation;  // 0: SiLU, 1: GELU (tanh)
    int32_t index;       // of its keys and values in the tables
};

struct Sizes { int64_t hidden, mlp, heads, kv_heads, head_dim, half_cache; };

struct Sequence {
    void* const* table;  // keys and values of every layer in turn
    int64_t slot, room;
    int64_t gap;  // the first rows, that have gaps between them: they lie before every window
    int64_t lender, shared;  // the first `shared` rows lie in the slot `lender`
};

struct Tokens {
    int64_t count;
    const int32_t* sequence;  // [T] which of the sequences
    const int32_t* position;  // [T] for the rotation
    const int32_t* row;       // [T] where its key and value are written
    const int32_t* until;     // [T] committed rows [0, until) are seen (those of the window)
    const int32_t* begin;     // [T + 1] where its further rows lie in `further`
    const int32_t* further;   // rows of the tree that a token sees, itself last
    const Sequence* sequences;
    float* probabilities;         // null, or [H, T, most_rows]: what each token attends to; zeros before
    float* queries;               // null, or [T, H * D]
    int64_t most_rows;            // width of `probabilities`, and of the scratch for scores
};

struct Space {
    float *x;         // [T, d] the states: in and out
    float *normed;    // [T, d]
    float *q, *k, *v; // [T, H * D], [T, Hk * D] twice
    float *mixed;     // [T, H * D]
    float *gate, *up; // [T, mlp]
    float *after;     // [T, d], for norms behind a block
    int8_t* integers; // [T, max(d, H * D, mlp)]
    float *scale, *total;
    float* scores;    // [threads, MOST_TOGETHER, group, most_rows rounded up to 8]
};

int32_t interface_version() { return 3; }

}  // extern "C"

namespace {

template <class C>
void write_row(C* to, const float* from, int64_t d) {
    for (int64_t i = 0; i < d; i += 8) store(to + i, load(from + i));
}

void rotate(float* x, const float* cosine, const float* sine, int64_t d) {
    const int64_t middle = d / 2;
    int64_t i = 0;
    for (; i + 8 <= middle; i += 8) {
        const f8 a = load(x + i), b = load(x + middle + i), c = load(cosine + i), s = load(sine + i);
        store(x + i, fma(a, c, zero() - b * s));
        store(x + middle + i, fma(b, c, a * s));
    }
    for (; i < middle; ++i) {
        const float a = x[i], b = x[middle + i];
        x[i] = a * cosine[i] - b * sine[i];
        x[middle + i] = b * cosine[i] + a * sine[i];
    }
}

// Sums of the lanes of eight vectors, as the lanes of one; each lane by the same tree, wherever it stands.
inline f8 sums(const f8* v) {
#ifdef USE_AVX2
    const f8 a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const f8 b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
#else
    float out[8];
    for (int i = 0; i < 8; ++i)
        out[i] = ((v[i][0] + v[i][1]) + (v[i][2] + v[i][3])) + ((v[i][4] + v[i][5]) + (v[i][6] + v[i][7]));
    return load(out);
#endif
}

// Products of a query with eight keys; `keys` are rows of d floats.
inline f8 eight_dots(const float* query, const float* const* keys, int64_t d) {
    f8 acc[8];
    for (int j = 0; j < 8; ++j) acc[j] = load(query) * load(keys[j]);
    for (int64_t i = 8; i < d; i += 8) {
        const f8 q = load(query + i);
        for (int j = 0; j < 8; ++j) acc[j] = fma(q, load(keys[j] + i), acc[j]);
    }
    return sums(acc);
}

// out += sum of weights[j] * rows[j], one row after the other.
inline void add_rows(float* out, const float* weights, const float* const* rows, int64_t count, int64_t d) {
    int64_t i = 0;
    for (; i + 64 <= d; i += 64) {
        f8 acc[8];
        for (int v = 0; v < 8; ++v) acc[v] = load(out + i + 8 * v);
        for (int64_t j = 0; j < count; ++j) {
            const f8 p = all(weights[j]);
            for (int v = 0; v < 8; ++v) acc[v] = fma(p, load(rows[j] + i + 8 * v), acc[v]);
        }
        for (int v = 0; v < 8; ++v) store(out + i + 8 * v, acc[v]);
    }
    for (; i < d; i += 8) {
        f8 acc = load(out + i);
        for (int64_t j = 0; j < count; ++j) acc = fma(all(weights[j]), load(rows[j] + i), acc);
        store(out + i, acc);
    }
}

// Rows of the cache as floats: where they lie, if they are floats, or copies.
constexpr int64_t BLOCK = 8, LARGEST_HEAD = 512;
inline const float* as_floats(const float* row, float*, int64_t) { return row; }
inline const float* as_floats(const uint16_t* row, float* copy, int64_t d) {
    for (int64_t i = 0; i < d; i += 8) store(copy + i, load(row + i));
    return copy;
}

// What one token sees, in the order of its text: committed rows from `skip` on, then its ancestors in the tree.
struct Sight {
    int64_t skip, until, count;
    const int32_t* further;
};

// Attention of `heads` heads, that share their keys and values, for the tokens [first, last) of one sequence. Keys and
// values are read in blocks that all of them use. `scores` has room for every token, head and row.
template <class C>
void attend(const Layer& layer, const Sizes& size, const Tokens& tokens, const Space& space, int64_t first, int64_t last,
            int64_t first_head, int64_t heads, float* scores) {
    const int64_t d = size.head_dim, group = size.heads / size.kv_heads, wide = (tokens.most_rows + 7) / 8 * 8;
    const Sequence& sequence = tokens.sequences[tokens.sequence[first]];
    const auto rows_of = [&](int64_t which, int64_t slot) {
        const int64_t base = (slot * size.kv_heads + first_head / group) * sequence.room * d;
        return static_cast<const C*>(sequence.table[2 * layer.index + which]) + base;
    };
    const C *keys = rows_of(0, sequence.slot), *lent_keys = rows_of(0, sequence.lender);
    const C *values = rows_of(1, sequence.slot), *lent_values = rows_of(1, sequence.lender);
    const auto key_at = [&](int64_t p) { return (p < sequence.shared ? lent_keys : keys) + p * d; };
    const auto value_at = [&](int64_t p) { return (p < sequence.shared ? lent_values : values) + p * d; };
    alignas(32) float copies[BLOCK * LARGEST_HEAD];
    const float* rows[BLOCK];
    Sight sights[MOST_TOGETHER];
    int64_t common = INT64_MAX, start = INT64_MAX;
    for (int64_t t = first; t < last; ++t) {
        const int64_t until = tokens.until[t], further = tokens.begin[t + 1] - tokens.begin[t], seen = until + further;
        // The window counts the token itself. Tree rows are the token's own ancestors, so they are its last positions.
        int64_t skip = 0;
        if (layer.window > 0) skip = seen - layer.window > sequence.gap ? seen - layer.window : sequence.gap;
        sights[t - first] = Sight{skip, until, seen - skip, tokens.further + tokens.begin[t]};
        common = until < common ? until : common;
        start = skip < start ? skip : start;
    }
    const auto row_of = [](const Sight& s, int64_t j) {
        const int64_t p = j + s.skip;
        return p < s.until ? p : static_cast<int64_t>(s.further[p - s.until]);
    };
    const auto scores_of = [&](int64_t t, int64_t h) { return scores + ((t - first) * heads + h) * wide; };
    const auto query_of = [&](int64_t t, int64_t h) { return space.q + (t * size.heads + first_head + h) * d; };

    for (int64_t r = start; r < common; r += BLOCK) {
        const int64_t count = common - r < BLOCK ? common - r : BLOCK;
        for (int64_t j = 0; j < BLOCK; ++j)
            rows[j] = j < count ? as_floats(key_at(r + j), copies + j * d, d) : rows[0];
        for (int64_t t = first; t < last; ++t) {
            const int64_t skip = sights[t - first].skip;
            if (r + count <= skip) continue;
            for (int64_t h = 0; h < heads; ++h) {
                float found[8];
                store(found, eight_dots(query_of(t, h), rows, d));
                float* to = scores_of(t, h);
                for (int64_t j = skip > r ? skip - r : 0; j < count; ++j) to[r + j - skip] = found[j] * layer.scale;
            }
        }
    }
    for (int64_t t = first; t < last; ++t) {
        const Sight& sight = sights[t - first];
        for (int64_t from = common > sight.skip ? common - sight.skip : 0; from < sight.count; from += BLOCK) {
            const int64_t count = sight.count - from < BLOCK ? sight.count - from : BLOCK;
            for (int64_t j = 0; j < BLOCK; ++j)
                rows[j] = j < count ? as_floats(key_at(row_of(sight, from + j)), copies + j * d, d) : rows[0];
            for (int64_t h = 0; h < heads; ++h) {
                float found[8];
                store(found, eight_dots(query_of(t, h), rows, d));
                for (int64_t j = 0; j < count; ++j) scores_of(t, h)[from + j] = found[j] * layer.scale;
            }
        }
        for (int64_t h = 0; h < heads; ++h) {
            float* mine = scores_of(t, h);
            const int64_t count = sight.count, padded = (count + 7) / 8 * 8;
            if (layer.softcap > 0)
                for (int64_t j = 0; j < count; ++j) mine[j] = layer.softcap * std::tanh(mine[j] / layer.softcap);
            for (int64_t j = count; j < padded; ++j) mine[j] = -FLT_MAX;
            f8 top = all(-FLT_MAX), whole = zero();
            for (int64_t j = 0; j < padded; j += 8) top = max8(top, load(mine + j));
            const float most = largest(top);
            for (int64_t j = 0; j < padded; j += 8) {
                f8 p = exp8(load(mine + j) - all(most));
                if (j + 8 > count) {
                    // The least that `exp8` gives is not nothing, which padding has to weigh.
                    float kept[8];
                    store(kept, p);
                    for (int64_t i = count - j; i < 8; ++i) kept[i] = 0.0f;
                    p = load(kept);
                }
                store(mine + j, p);
                whole = whole + p;
            }
            const f8 inverse = all(1.0f / sum(whole));
            for (int64_t j = 0; j < padded; j += 8) store(mine + j, load(mine + j) * inverse);
            if (tokens.probabilities) {
                float* to = tokens.probabilities + ((first_head + h) * tokens.count + t) * tokens.most_rows;
                for (int64_t j = 0; j < count; ++j) to[row_of(sight, j)] = mine[j];
            }
            std::memset(space.mixed + (t * size.heads + first_head + h) * d, 0, d * sizeof(float));
        }
    }
    for (int64_t r = start; r < common; r += BLOCK) {
        const int64_t count = common - r < BLOCK ? common - r : BLOCK;
        for (int64_t j = 0; j < count; ++j) rows[j] = as_floats(value_at(r + j), copies + j * d, d);
        for (int64_t t = first; t < last; ++t) {
            const int64_t skip = sights[t - first].skip, begin = skip > r ? skip - r : 0;
            if (begin >= count) continue;
            for (int64_t h = 0; h < heads; ++h)
                add_rows(space.mixed + (t * size.heads + first_head + h) * d, scores_of(t, h) + r + begin - skip, rows + begin,
                         count - begin, d);
        }
    }
    for (int64_t t = first; t < last; ++t) {
        const Sight& sight = sights[t - first];
        for (int64_t from = common > sight.skip ? common - sight.skip : 0; from < sight.count; from += BLOCK) {
            const int64_t count = sight.count - from < BLOCK ? sight.count - from : BLOCK;
            for (int64_t j = 0; j < count; ++j)
                rows[j] = as_floats(value_at(row_of(sight, from + j)), copies + j * d, d);
            for (int64_t h = 0; h < heads; ++h)
                add_rows(space.mixed + (t * size.heads + first_head + h) * d, scores_of(t, h) + from, rows, count, d);
        }
    }
}

inline f8 activate(f8 x, int32_t kind) {
    if (kind == 0) return x / (all(1.0f) + exp8(zero() - x));
    // 0.5 x (1 + tanh(z)) = x / (1 + exp(-2 z))
    const f8 z = all(0.7978845608028654f) * fma(all(0.044715f) * x * x, x, x);
    return x / (all(1.0f) + exp8(all(-2.0f) * z));
}

void run_layer(const Layer& layer, const Sizes& size, const Tokens& tokens, const Space& space) {
    const int64_t count = tokens.count, d = size.hidden, dim = size.head_dim;
    const int64_t all_heads = size.heads * dim, kv_all = size.kv_heads * dim, group = size.heads / size.kv_heads;
    const Acts in{space.normed, space.integers, space.scale, space.total, d};
    const Acts mixed{space.mixed, space.integers, space.scale, space.total, all_heads};
    const Acts inner{space.gate, space.integers, space.scale, space.total, size.mlp};
    const bool integers_in = needs_integers(layer.q) || needs_integers(layer.k) || needs_integers(layer.v);
    const bool integers_mlp = needs_integers(layer.gate) || needs_integers(layer.up);

#pragma omp for schedule(static)
    for (int64_t t = 0; t < count; ++t) {
        norm_row(space.x + t * d, layer.norm_attention, space.normed + t * d, d, layer.eps);
        if (integers_in) quantise_row(in, t);
    }
    share(layer.q, in, count, space.q, all_heads, false);
    share(layer.k, in, count, space.k, kv_all, false);
    share(layer.v, in, count, space.v, kv_all, false);
#pragma omp barrier
    const int64_t parts = size.heads + 2 * size.kv_heads;
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < count * parts; ++unit) {
        const int64_t t = unit / parts, part = unit % parts;
        const float* cosine = layer.cosine + tokens.position[t] * (dim / 2);
        const float* sine = layer.sine + tokens.position[t] * (dim / 2);
        if (part < size.heads) {
            float* q = space.q + (t * size.heads + part) * dim;
            if (layer.norm_q) norm_row(q, layer.norm_q, q, dim, layer.eps);
            rotate(q, cosine, sine, dim);
            if (tokens.queries) std::memcpy(tokens.queries + (t * size.heads + part) * dim, q, dim * sizeof(float));
            continue;
        }
        const bool is_key = part < size.heads + size.kv_heads;
        const int64_t h = part - size.heads - (is_key ? 0 : size.kv_heads);
        float* from = (is_key ? space.k : space.v) + (t * size.kv_heads + h) * dim;
        if (is_key) {
            if (layer.norm_k) norm_row(from, layer.norm_k, from, dim, layer.eps);
            rotate(from, cosine, sine, dim);
        }
        const Sequence& sequence = tokens.sequences[tokens.sequence[t]];
        const int64_t place = ((sequence.slot * size.kv_heads + h) * sequence.room + tokens.row[t]) * dim;
        void* table = sequence.table[2 * layer.index + (is_key ? 0 : 1)];
        if (size.half_cache) write_row(static_cast<uint16_t*>(table) + place, from, dim);
        else write_row(static_cast<float*>(table) + place, from, dim);
    }
    // Tokens of a sequence go together as far as that leaves enough pieces of work for all threads; a single token's
    // heads are shared out one by one.
    const int64_t team = omp_get_num_threads();
    const bool apart = count * size.kv_heads < 2 * team || group > MOST_TOGETHER;
    const int64_t each = apart ? 1 : group, shares = size.heads / each;
    int64_t together = apart ? 1 : count * shares / (4 * team);
    together = together < 1 ? 1 : together > MOST_TOGETHER ? MOST_TOGETHER : together;
    const int64_t wide = (tokens.most_rows + 7) / 8 * 8;
    float* scores = space.scores + omp_get_thread_num() * MOST_TOGETHER * group * wide;
    const int64_t tiles = (count + together - 1) / together;
#pragma omp for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < tiles * shares; ++unit) {
        const int64_t head = unit % shares * each, end = (unit / shares + 1) * together;
        int64_t from = unit / shares * together;
        const int64_t stop = end < count ? end : count;
        while (from < stop) {
            int64_t to = from + 1;
            while (to < stop && tokens.sequence[to] == tokens.sequence[from]) ++to;
            if (size.half_cache) attend<uint16_t>(layer, size, tokens, space, from, to, head, each, scores);
            else attend<float>(layer, size, tokens, space, from, to, head, each, scores);
            from = to;
        }
    }
    if (needs_integers(layer.o)) {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < count; ++t) quantise_row(mixed, t);
    }
    share(layer.o, mixed, count, layer.norm_after_attention ? space.after : space.x, d, !layer.norm_after_attention);
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t t = 0; t < count; ++t) {
        float* x = space.x + t * d;
        if (layer.norm_after_attention) {
            float* after = space.after + t * d;
            norm_row(after, layer.norm_after_attention, after, d, layer.eps);
            for (int64_t i = 0; i < d; ++i) x[i] += after[i];
        }
        norm_row(x, layer.norm_mlp, space.normed + t * d, d, layer.eps);
        if (integers_mlp) quantise_row(in, t);
    }
    share(layer.gate, in, count, space.gate, size.mlp, false);
    share(layer.up, in, count, space.up, size.mlp, false);
#pragma omp barrier
    const int64_t groups = size.mlp / GROUP, rest = size.mlp % GROUP;
    const bool integers_down = needs_integers(layer.down);
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < count * (groups + (rest ? 1 : 0)); ++unit) {
        const int64_t of_token = groups + (rest ? 1 : 0), t = unit / of_token, g = unit % of_token;
        float* gate = space.gate + t * size.mlp + g * GROUP;
        const float* up = space.up + t * size.mlp + g * GROUP;
        const int64_t width = g < groups ? GROUP : rest;
        for (int64_t i = 0; i < width; i += 8) {
            if (i + 8 <= width) {
                store(gate + i, activate(load(gate + i), layer.activation) * load(up + i));
            } else {
                float last[8] = {0};
                std::memcpy(last, gate + i, (width - i) * sizeof(float));
                store(last, activate(load(last), layer.activation));
                for (int64_t j = 0; j < width - i; ++j) gate[i + j] = last[j] * up[i + j];
            }
        }
        if (integers_down)
            quantise_group(gate, space.integers + t * size.mlp + g * GROUP, space.scale + t * groups + g,
                           space.total + t * groups + g);
    }
    share(layer.down, inner, count, layer.norm_after_mlp ? space.after : space.x, d, !layer.norm_after_mlp);
#pragma omp barrier
    if (layer.norm_after_mlp) {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < count; ++t) {
            float* after = space.after + t * d;
            norm_row(after, layer.norm_after_mlp, after, d, layer.eps);
            for (int64_t i = 0; i < d; ++i) space.x[t * d + i] += after[i];
        }
    }
}

}  // namespace

extern "C" {

// Run layers one after the other over space.x, [T, d].
void run_layers(const Layer* const* layers, int64_t number, const Sizes* size, const Tokens* tokens, const Space* space,
                int32_t threads) {
#pragma omp parallel num_threads(threads)
    for (int64_t i = 0; i < number; ++i) run_layer(*layers[i], *size, *tokens, *space);
}

// out [T, n] = norm(x) @ w^T (+ bias); without a norm where it is null. `space` lends its buffers.
void product(const Matrix* w, const float* x, const float* norm, float eps, int64_t count, float* normed,
             int8_t* integers, float* scale, float* total, float* out, int32_t threads) {
    const Acts in{normed, integers, scale, total, w->k};
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < count; ++t) {
            const float* row = x + t * w->k;
            if (norm) norm_row(row, norm, normed + t * w->k, w->k, eps);
            else if (row != normed + t * w->k) std::memcpy(normed + t * w->k, row, w->k * sizeof(float));
            if (needs_integers(*w)) quantise_row(in, t);
        }
        share(*w, in, count, out, w->n, false);
    }
}

// out [T, d] = norm(x)
void normalise(const float* x, const float* norm, float eps, int64_t count, int64_t d, float* out) {
    for (int64_t t = 0; t < count; ++t) norm_row(x + t * d, norm, out + t * d, d, eps);
}

// Rows `ids` of a packed matrix, as floats, times `factor`: out [count, k].
void embed(const Matrix* w, const int64_t* ids, int64_t count, float factor, float* out) {
    const int64_t k = w->k, groups = k / GROUP;
    for (int64_t t = 0; t < count; ++t) {
        const int64_t row = ids[t];
        float* to = out + t * k;
        if (w->kind <= BF16) {
            const int64_t base = row / 16 * k, lane = row % 16;
            float lanes[8];
            for (int64_t c = 0; c < k; ++c) {
                const int64_t place = (base + c) * 16 + lane / 8 * 8;
                if (w->kind == F32) store(lanes, load(static_cast<const float*>(w->data) + place));
                else if (w->kind == F16) store(lanes, half(static_cast<const uint16_t*>(w->data) + place));
                else store(lanes, brain(static_cast<const uint16_t*>(w->data) + place));
                to[c] = lanes[lane % 8] * factor;
            }
            continue;
        }
        const int64_t base = row / 8 * groups, r = row % 8;
        for (int64_t g = 0; g < groups; ++g) {
            float d[2][8], m[8] = {0};
            const uint8_t* nibbles = nullptr;
            const int8_t* bytes = nullptr;
            if (w->kind == Q4) {
                const Block4& b = static_cast<const Block4*>(w->data)[base + g];
                nibbles = b.q;
                store(d[0], load(b.d));
                store(m, load(b.m));
            } else if (w->kind == Q4F) {
                const Block4F& b = static_cast<const Block4F*>(w->data)[base + g];
                nibbles = b.q;
                store(d[0], load(b.d));
                store(m, load(b.m));
            } else if (w->kind == Q8) {
                const Block8& b = static_cast<const Block8*>(w->data)[base + g];
                bytes = b.q;
                store(d[0], load(b.d));
                store(d[1], load(b.d));
            } else {
                const Block8H& b = static_cast<const Block8H*>(w->data)[base + g];
                bytes = b.q;
                store(d[0], load(b.d[0]));
                store(d[1], load(b.d[1]));
            }
            for (int64_t c = 0; c < GROUP; ++c) {
                float value;
                if (nibbles) {
                    const int raw = nibbles[32 * (c / 8) + 4 * r + c % 4];
                    value = static_cast<float>(c % 8 < 4 ? raw & 15 : raw >> 4) * d[0][r] + m[r];
                } else {
                    value = static_cast<float>(bytes[32 * (c / 4) + 4 * r + c % 4]) * d[c / 16][r];
                }
                to[g * GROUP + c] = value * factor;
            }
        }
    }
}

// -- packing ----------------------------------------------------------------------------------------------------------

// Plain rows [n, k] of 16 or 32 bit values to [n / 16][k][16]; rows beyond n are zero.
void pack_floats(const void* rows, int64_t n, int64_t k, int64_t bytes, void* out) {
    const int64_t units = (n + 15) / 16;
#pragma omp parallel for
    for (int64_t u = 0; u < units; ++u)
        for (int64_t c = 0; c < k; ++c)
            for (int64_t r = 0; r < 16; ++r) {
                const int64_t row = 16 * u + r, to = (u * k + c) * 16 + r;
                if (bytes == 4) static_cast<float*>(out)[to] = row < n ? static_cast<const float*>(rows)[row * k + c] : 0;
                else static_cast<uint16_t*>(out)[to] = row < n ? static_cast<const uint16_t*>(rows)[row * k + c] : 0;
            }
}

// q [n, k] from 0 to 15, d and m [n, k / 32] (half precision bits, or single precision) to blocks.
void pack4(const uint8_t* q, const void* d, const void* m, int64_t n, int64_t k, int32_t single, void* out) {
    const int64_t units = (n + 7) / 8, groups = k / GROUP;
#pragma omp parallel for
    for (int64_t u = 0; u < units; ++u)
        for (int64_t g = 0; g < groups; ++g) {
            uint8_t nibbles[128] = {0};
            for (int64_t r = 0; r < 8 && 8 * u + r < n; ++r) {
                const uint8_t* row = q + (8 * u + r) * k + g * GROUP;
                for (int j = 0; j < 4; ++j)
                    for (int i = 0; i < 4; ++i)
                        nibbles[32 * j + 4 * r + i] = static_cast<uint8_t>(row[8 * j + i] | (row[8 * j + 4 + i] << 4));
            }
            const auto fill = [&](auto& block, const auto* ds, const auto* ms) {
                std::memcpy(block.q, nibbles, 128);
                for (int64_t r = 0; r < 8; ++r) {
                    const bool there = 8 * u + r < n;
                    block.d[r] = there ? ds[(8 * u + r) * groups + g] : 0;
                    block.m[r] = there ? ms[(8 * u + r) * groups + g] : 0;
                }
            };
            if (single) fill(static_cast<Block4F*>(out)[u * groups + g], static_cast<const float*>(d), static_cast<const float*>(m));
            else fill(static_cast<Block4*>(out)[u * groups + g], static_cast<const uint16_t*>(d), static_cast<const uint16_t*>(m));
        }
}

// q [n, k] signed; d [n, k / 32] in half precision, or [n, k / 16] in single precision, to blocks.
void pack8(const int8_t* q, const void* d, int64_t n, int64_t k, int32_t halves, void* out) {
    const int64_t units = (n + 7) / 8, groups = k / GROUP;
#pragma omp parallel for
    for (int64_t u = 0; u < units; ++u)
        for (int64_t g = 0; g < groups; ++g) {
            int8_t bytes[256] = {0};
            for (int64_t r = 0; r < 8 && 8 * u + r < n; ++r)
                for (int j = 0; j < 8; ++j)
                    std::memcpy(bytes + 32 * j + 4 * r, q + (8 * u + r) * k + g * GROUP + 4 * j, 4);
            for (int64_t r = 0; r < 8; ++r) {
                const int64_t row = 8 * u + r;
                if (halves) {
                    Block8H& block = static_cast<Block8H*>(out)[u * groups + g];
                    for (int part = 0; part < 2; ++part)
                        block.d[part][r] = row < n ? static_cast<const float*>(d)[(row * groups + g) * 2 + part] : 0.0f;
                } else {
                    static_cast<Block8*>(out)[u * groups + g].d[r] =
                        row < n ? static_cast<const uint16_t*>(d)[row * groups + g] : 0;
                }
            }
            if (halves) std::memcpy(static_cast<Block8H*>(out)[u * groups + g].q, bytes, 256);
            else std::memcpy(static_cast<Block8*>(out)[u * groups + g].q, bytes, 256);
        }
}

}  // extern "C"
