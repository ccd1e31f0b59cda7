/* cuBLASLt on the host's memory: describes matrices in columns as the library does and multiplies f32 by three loops, so that a
 * wrong order of operands, operation, distance or stride shows in the numbers. With -DHIP hipBLASLt's prefix and numbers.
 * -DNONE: no way to compute anything; -DFAIL: the product fails. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef HIP
#define F(name) hipblasLt##name
enum { COMPUTE = 2, COMPUTE_TF32 = 6, PLAIN = 111, TRANSPOSED = 112, TRANSPOSE_A = 0, TRANSPOSE_B = 1, EPILOGUE = 2, BIAS = 3,
       BIAS_TYPE = 4, BATCH = 0, STRIDE = 1, RESULT = 56 };
#else
#define F(name) cublasLt##name
enum { COMPUTE = 68, COMPUTE_TF32 = 77, PLAIN = 0, TRANSPOSED = 1, TRANSPOSE_A = 3, TRANSPOSE_B = 4, EPILOGUE = 7, BIAS = 8,
       BIAS_TYPE = 26, BATCH = 5, STRIDE = 6, RESULT = 96 };
#endif
enum { INVALID = 7 };

struct product { int a, b; unsigned epilogue; const float *bias; };
struct layout { uint64_t rows, columns; int64_t distance, stride; int batch; };
static int alive;
/* Descriptions that were created and not destroyed. */
const char *fake_alive(void) { return alive ? "some" : "none"; }

int F(Create)(void **handle) { *handle = &alive; return 0; }
int F(Destroy)(void *handle) { return handle == &alive ? 0 : INVALID; }
#ifdef HIP
int F(GetVersion)(void *handle, int *version) { *version = 100; return handle == &alive ? 0 : INVALID; }
#else
size_t F(GetVersion)(void) { return 130200; }
#endif
int F(MatmulDescCreate)(struct product **p, int compute, int scale) {
    if ((compute != COMPUTE && compute != COMPUTE_TF32) || scale != 0) return INVALID;
    alive++;
    *p = calloc(1, sizeof **p);
    (*p)->a = (*p)->b = PLAIN;
    return 0;
}
int F(MatmulDescSetAttribute)(struct product *p, int attribute, const void *value, size_t bytes) {
    if (attribute == BIAS) {
        if (bytes != 8) return INVALID;
        memcpy(&p->bias, value, 8);
        return 0;
    }
    if (bytes != 4) return INVALID;
    if (attribute == TRANSPOSE_A) memcpy(&p->a, value, 4);
    else if (attribute == TRANSPOSE_B) memcpy(&p->b, value, 4);
    else if (attribute == EPILOGUE) memcpy(&p->epilogue, value, 4);
    else if (attribute != BIAS_TYPE) return INVALID;
    return 0;
}
int F(MatmulDescDestroy)(struct product *p) { free(p); alive--; return 0; }
int F(MatrixLayoutCreate)(struct layout **l, int type, uint64_t rows, uint64_t columns, int64_t distance) {
    if (type != 0 || distance < (int64_t)rows) return INVALID;
    alive++;
    *l = calloc(1, sizeof **l);
    **l = (struct layout){rows, columns, distance, 0, 1};
    return 0;
}
int F(MatrixLayoutSetAttribute)(struct layout *l, int attribute, const void *value, size_t bytes) {
    if (attribute == BATCH && bytes == 4) memcpy(&l->batch, value, 4);
    else if (attribute == STRIDE && bytes == 8) memcpy(&l->stride, value, 8);
    else return INVALID;
    return 0;
}
int F(MatrixLayoutDestroy)(struct layout *l) { free(l); alive--; return 0; }
int F(MatmulPreferenceCreate)(void **p) { alive++; *p = &alive; return 0; }
int F(MatmulPreferenceSetAttribute)(void *p, int attribute, const void *value, size_t bytes) {
    (void)p; (void)value;
    return bytes == (attribute == 1 ? 8 : 4) ? 0 : INVALID;
}
int F(MatmulPreferenceDestroy)(void *p) { (void)p; alive--; return 0; }

/* Two ways, marked 1 and 2 in the first byte. */
int F(MatmulAlgoGetHeuristic)(void *handle, struct product *p, struct layout *a, struct layout *b, struct layout *c,
                              struct layout *d, void *preference, int most, unsigned char *results, int *count) {
    (void)handle; (void)preference;
    uint64_t m = p->a == TRANSPOSED ? a->columns : a->rows, k = p->a == TRANSPOSED ? a->rows : a->columns;
    uint64_t n = p->b == TRANSPOSED ? b->rows : b->columns, kb = p->b == TRANSPOSED ? b->columns : b->rows;
    if (k != kb || d->rows != m || d->columns != n || c != d || most < 2) return INVALID;
#ifdef NONE
    return 15;
#endif
    results[0] = 1;
    results[RESULT] = 2;
    *count = 2;
    return 0;
}
int F(Matmul)(void *handle, struct product *p, const float *alpha, const float *A, struct layout *a, const float *B,
              struct layout *b, const float *beta, const float *C, struct layout *c, float *D, struct layout *d,
              const unsigned char *way, void *workspace, size_t bytes, void *stream) {
    (void)handle; (void)workspace; (void)bytes; (void)stream; (void)c;
#ifdef FAIL
    return 13;
#endif
    if (C != D || (way[0] != 1 && way[0] != 2)) return INVALID;
    uint64_t k = p->a == TRANSPOSED ? a->rows : a->columns;
    for (int batch = 0; batch < d->batch; batch++, A += a->stride, B += b->stride, D += d->stride)
        for (uint64_t j = 0; j < d->columns; j++)
            for (uint64_t i = 0; i < d->rows; i++) {
                float sum = 0;
                for (uint64_t l = 0; l < k; l++)
                    sum += (p->a == TRANSPOSED ? A[l + i * a->distance] : A[i + l * a->distance]) *
                           (p->b == TRANSPOSED ? B[j + l * b->distance] : B[l + j * b->distance]);
                float *at = D + i + j * d->distance;
                *at = *alpha * sum + *beta * *at + (p->epilogue == 4 ? p->bias[i] : 0);
            }
    return 0;
}
