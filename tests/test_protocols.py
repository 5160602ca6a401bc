"""NumPy's and SciPy's functions on Tensors, DLPack, and programs in the style of HIPS autograd."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import Tensor, protocols
from gpugrad.errors import DTypeError, GpugradError, GraphError, ShapeError

from .test_budgets import BENCH

ROOT = Path(__file__).parent.parent
LATER = {"cumulative_prod", "cumulative_sum", "matvec", "unstack", "vecmat"}  # not in NumPy 2.0
OLD = np.lib.NumpyVersion(np.__version__) < "2.1.0"
rng = np.random.default_rng(7)
A = rng.uniform(0.3, 1.7, (3, 4))  # no two elements alike, none at a kink
B = rng.uniform(0.4, 1.6, (3, 4))
V = rng.uniform(0.3, 1.7, 4)
S = (lambda q: q @ q.T + 3 * np.eye(3))(rng.normal(size=(3, 3)))
HOLES = np.where(np.arange(12).reshape(3, 4) % 5 == 2, np.nan, A)
MASK = np.arange(12).reshape(3, 4) % 3 > 0
IDS = np.array([2, 0, 2, 1])

DIFFERENTIABLE = """

np.sin(x) np.cos(x) np.tan(x) np.arcsin(x/2) np.arccos(x/2) np.arctan(x) np.sinh(x) np.cosh(x) np.tanh(x) np.arcsinh(x)
np.arccosh(x+1) np.arctanh(x/2) np.exp(x) np.exp2(x) np.expm1(x) np.log(x) np.log2(x) np.log10(x) np.log1p(x)
np.sqrt(x) np.cbrt(x) np.square(x) np.reciprocal(x) np.negative(x) np.positive(x) np.absolute(x) np.fabs(x) np.sign(x)
np.floor(x) np.ceil(x) np.trunc(x) np.rint(x) np.deg2rad(x) np.rad2deg(x) np.degrees(x) np.radians(x) np.conjugate(x)
np.sinc(x) np.add(x,B) np.subtract(B,x) np.multiply(x,V) np.divide(x,B) np.true_divide(B,x) np.power(x,B)
np.float_power(x,2) np.maximum(x,B) np.minimum(x,B) np.fmax(x,B) np.fmin(x,B) np.arctan2(x,B) np.hypot(x,B)
np.logaddexp(x,B) np.logaddexp2(x,B) np.copysign(x,-B) np.fmod(x,B) np.fmod(-x,B/3) np.fmod(x,0.7) np.remainder(x,B)
np.float_power(0.1,x) np.ldexp(x,IDS) np.power(0.1,x) np.fmod(0.7,x) np.mod(x,B) np.floor_divide(x,B) np.heaviside(x,B)
np.ldexp(x,2) np.add(x,[1,2,3,4]) np.add(x,1) np.add([[1.5]],x) np.multiply(2.5,x) np.matmul(x,B.T) np.vecdot(x,B)
np.modf(x)[0] np.divmod(x,B)[1] np.add(x,B,dtype='float64') np.exp(x,order='C') np.add.reduce(x)
np.add.reduce(x,axis=None) np.add.reduce(x,1,keepdims=True) np.multiply.reduce(x,axis=1) np.maximum.reduce(x,axis=1)
np.minimum.reduce(x) np.subtract.reduce(x,axis=1) np.logaddexp.reduce(x,axis=1) np.add.reduce(x,axis=1,initial=2.0)
np.maximum.reduce(x,axis=1,initial=0.9) np.add.reduce(x,where=MASK) np.maximum.reduce(x,axis=0,initial=0.0,where=MASK)
np.divide.reduce(x,axis=0,initial=2.0) np.add.accumulate(x) np.multiply.accumulate(x,axis=1)
np.maximum.accumulate(x,axis=1) np.add.outer(x,V) np.multiply.outer(V,x) np.subtract.outer(x,x) np.sum(x) np.sum(x,0)
np.sum(x,axis=(0,1),keepdims=True) np.sum(x,1,np.float64) np.sum(x,axis=1,initial=2) np.sum(x,where=MASK)
np.sum(x,axis=-1,where=MASK) np.prod(x) np.prod(x,axis=1) np.prod(x,where=MASK) np.mean(x) np.mean(x,axis=0)
np.mean(x,-1,keepdims=True) np.mean(x,where=MASK) np.mean(x,axis=1,where=MASK) np.var(x) np.var(x,0) np.var(x,ddof=1)
np.var(x,axis=1,ddof=1,keepdims=True) np.std(x) np.std(x,axis=1) np.std(x,ddof=1) np.std(x,0,None,None,1)
np.var(x,axis=1,correction=1) np.max(x) np.max(x,axis=1) np.amax(x,0) np.min(x) np.amin(x,axis=1,keepdims=True)
np.max(x,axis=1,initial=1.0) np.max(x,axis=1,initial=0.0,where=MASK) np.ptp(x) np.ptp(x,axis=1) np.average(x)
np.average(x,axis=0) np.average(x,weights=B) np.average(x,axis=1,weights=V)
np.average(x,axis=1,weights=V,returned=True)[0] np.average(B,axis=1,weights=x[0]) np.average(x,axis=0,weights=[1,2,3])
np.median(x) np.median(x,axis=0) np.median(x,axis=1,keepdims=True) np.quantile(x,0.3)
np.quantile(x,[0.1,0.5,1.0],axis=1) np.percentile(x,40,axis=0) np.quantile(x,0.25,axis=(0,1),keepdims=True)
np.percentile(x,[[0,50],[75,100]],axis=1) np.nansum(h) np.nansum(h,axis=1) np.nanprod(h,axis=1) np.nanmean(h)
np.nanmean(h,axis=0) np.nanmax(h,axis=1) np.nanmin(h,axis=1) np.nanvar(h,axis=1) np.nanstd(h,axis=1,ddof=1)
np.nancumsum(h,axis=1) np.nancumprod(h,axis=1) np.nan_to_num(h) np.nan_to_num(h,nan=3.0) np.cov(x)
np.cov(x,rowvar=False) np.cov(x,B) np.cov(x,bias=True) np.cov(x[0]) np.corrcoef(x) np.corrcoef(x[0],x[1]) np.cumsum(x)
np.cumsum(x,1) np.cumsum(x,axis=0) np.cumprod(x) np.cumprod(x,axis=1) np.sort(x) np.sort(x,axis=0) np.sort(x,axis=None)
np.diff(x) np.diff(x,2) np.diff(x,axis=0) np.diff(x,prepend=0.5) np.diff(x,axis=0,append=B) np.ediff1d(x)
np.ediff1d(x,to_begin=[1,2],to_end=3) np.gradient(x)[0] np.gradient(x)[1] np.gradient(x,axis=1)
np.gradient(x,2.0,axis=0) np.gradient(x,0.5,2.0)[1] np.gradient(x,np.cumsum(V),axis=1)
np.gradient(x,0.5,axis=1,edge_order=2) np.gradient(x,np.cumsum(V),axis=1,edge_order=2) np.gradient(V,np.cumsum(x[0]))
np.gradient(x[0]) np.trapezoid(x) np.trapezoid(x,dx=0.5,axis=0) np.trapezoid(x,V) np.trapezoid(B,x)
np.trapezoid(x,[0,1,3],axis=0) np.interp(x,[0.0,1.0,2.5],[1.0,3.0,2.0]) np.interp([0.35,0.9,9.0],np.sort(x[0]),V)
np.interp(B,np.sort(V),x[0]) np.interp(x,[0.6,1.0],[1.0,3.0],left=-1.0,right=7.0) np.convolve(x[0],V)
np.convolve(x[0],[1.0,2.0],'same') np.convolve(x[0],V[:3],mode='valid') np.convolve(V[:2],x[1],'same')
np.correlate(x[0],V) np.correlate(x[0],V[:2],'full') np.correlate(V[:2],x[1],'full') np.correlate(x[0],V[:3],'same')
np.reshape(x,(4,3)) np.reshape(x,-1) np.reshape(x,(2,-1),order='F') np.ravel(x) np.ravel(x,order='F') np.transpose(x)
np.transpose(x,(1,0)) np.permute_dims(x,(1,0)) np.matrix_transpose(x) np.swapaxes(x,0,1) np.moveaxis(x,0,1)
np.rollaxis(x,1) np.rollaxis(x[None],2,1) np.expand_dims(x,0) np.expand_dims(x,(0,2)) np.squeeze(x[None])
np.squeeze(x[None],axis=0) np.atleast_1d(x[0,0]) np.atleast_2d(x[0]) np.atleast_2d(x[0],x)[0] np.atleast_3d(x)
np.atleast_3d(x[0]) np.broadcast_to(x,(2,3,4)) np.broadcast_arrays(x,V)[0] np.broadcast_arrays(V,x)[0]+0*x np.copy(x)
np.astype(x,np.float64) np.concatenate([x,B]) np.concatenate((x,B),axis=1) np.concat([x,x],axis=None)
np.concatenate([x,[[1,2,3,4]]]) np.stack([x,B]) np.stack((x,B),-1) np.vstack([x,V]) np.vstack((x[0],V))
np.hstack([x,B]) np.hstack((x[0],[1.0,2.0])) np.hstack([x[0,0],1.0]) np.dstack([x,B]) np.column_stack([x[:,0],B])
np.append(x,V) np.append(x,B,axis=0) np.block([[x,B],[B,x]]) np.block([x,B])
np.block([[x,np.ones((3,1))],[np.zeros((1,5))]]) np.split(x,2,axis=1)[1] np.split(x,[1,3],1)[1]
np.array_split(x,3,axis=1)[0] np.array_split(x,[1],0)[1] np.hsplit(x,2)[0] np.vsplit(x,3)[1] np.dsplit(x[None],2)[1]
np.unstack(x)[1] np.unstack(x,axis=1)[2] np.flip(x) np.flip(x,axis=1) np.fliplr(x) np.flipud(x) np.rot90(x)
np.rot90(x,2) np.rot90(x,3) np.rot90(x,0) np.roll(x,1) np.roll(x,(1,2),axis=(0,1)) np.tile(x,2) np.tile(x,(2,1,2))
np.repeat(x,2) np.repeat(x,[1,0,2],axis=0) np.repeat(x,3,axis=1) np.pad(x,1) np.pad(x,((1,0),(2,1)),mode='reflect')
np.pad(x,1,constant_values=2.5) np.pad(x,2,'edge') np.meshgrid(x[0],V)[0] np.meshgrid(V,x[0],indexing='ij')[1]
np.meshgrid(V,x[0],sparse=True)[1] np.delete(x,1,axis=0) np.delete(x,[0,5]) np.delete(x,slice(0,2),1)
np.full_like(B,2.0)*x np.full_like(x,x[0,0]) np.linspace(x[0,0],x[1,1],5) np.linspace(0,x[0],4,axis=1)
np.linspace(x[0],2.0,3,endpoint=False) np.where(MASK,x,B) np.where(MASK,x,0) np.where(x>1,x,-x) np.where(MASK,2,x)
np.clip(x,0.6,1.2) np.clip(x,None,1.2) np.clip(x,min=0.6) np.clip(x,a_min=0.6,a_max=None) np.round(x) np.round(x,2)
np.around(x,1) np.select([x>1.2,x>0.8],[x**2,x],-1.0) np.select([MASK],[x]) np.compress([True,False,True],x,axis=0)
np.extract(MASK,x) np.take(x,IDS,axis=0) np.take(x,[1,1,5]) np.take(x,[[0,1]],1)
np.take_along_axis(x,np.argsort(B),axis=1) np.take_along_axis(x,np.argsort(B,0),0) np.diag(x) np.diag(x,1)
np.diag(x[0]) np.diag(x[0],-1) np.diagflat(x) np.diagonal(x) np.diagonal(x[None]*V,1,1,2) np.trace(x) np.trace(x,1)
np.trace(x[None],axis1=1,axis2=2) np.tril(x) np.triu(x,1) np.tril(x,k=-1) np.fix(x) np.real(x) np.imag(x)
np.bincount(IDS,x[0]) np.bincount(IDS,weights=x[0],minlength=7) np.dot(x,V) np.dot(V,x.T) np.dot(x,B.T)
np.dot(x[None],x.T[None]) np.dot(x,2.0) np.inner(x,B) np.inner(x[0],x[1]) np.inner(x,2.0) np.vdot(x,B) np.outer(x,V)
np.outer(V,x) np.tensordot(x,B,2) np.tensordot(x,B,axes=([0],[0])) np.kron(x,V) np.kron(V[:2],x)
np.cross(x[:,:3],B[:,:3]) np.cross(x[:,0],B[:,0]) np.cross(x,B,axis=0) np.cross(x,B,axisa=0,axisb=0,axisc=0)
np.einsum('ij,kj->ik',x,B) np.einsum('ij,ij',x,x) np.einsum('ij->j',x,optimize=True) np.einsum('i...->...',x)
np.matvec(x,V) np.vecmat(B[:,0],x) np.polyval([1.0,2.0,3.0],x) np.polyval(x[0],V) np.polyval(x[0],2.0) np.vander(x[0])
np.vander(x[0],3,increasing=True) np.cumulative_sum(x,axis=1) np.cumulative_prod(x,axis=0)
np.cumulative_sum(x,axis=1,include_initial=True) np.linalg.norm(x) np.linalg.norm(x,axis=1)
np.linalg.norm(x,ord=1,axis=0) np.linalg.norm(x,'fro') np.linalg.norm(x,'nuc') np.linalg.norm(x[0],np.inf)
np.linalg.norm(x,2) np.linalg.norm(x[0],3) np.linalg.norm(x,axis=(0,1)) np.linalg.norm(x[None],1,(1,2),True)
np.linalg.norm(x,-np.inf) np.linalg.svd(x,full_matrices=False)[1] np.linalg.svd(x,compute_uv=False)
np.linalg.svdvals(x) np.linalg.eigh(m)[0] np.linalg.eigvalsh(m) np.linalg.inv(m) np.linalg.det(m)
np.linalg.slogdet(m)[1] np.linalg.cholesky(m) np.linalg.cholesky(m,upper=True) np.linalg.solve(m,B)
np.linalg.solve(m,x) np.linalg.solve(m,x[:,0]) np.linalg.pinv(x) np.linalg.qr(m)[1] np.linalg.qr(m,'r')
np.linalg.matrix_power(m,3) np.linalg.matrix_power(m,-1) np.linalg.multi_dot([x.T,m,x]) np.linalg.cond(m)
np.linalg.cond(m,1) np.linalg.cond(m,-2) np.linalg.matrix_norm(x) np.linalg.vector_norm(x,axis=1)
np.linalg.outer(x[0],V) np.linalg.matmul(x,B.T) np.linalg.trace(m) np.linalg.diagonal(x,offset=1)
np.linalg.cross(x[:,:3],B[:,:3]) np.linalg.tensordot(x,B) np.linalg.vecdot(x,B) np.linalg.matrix_transpose(x) V+x V-x
V*x V/x V**x V@x.T np.maximum.accumulate(x) np.minimum.accumulate(x,axis=1) np.maximum.accumulate(h,axis=1)[:,:2]
np.partition(x,2)[:,2] np.insert(x,1,V,axis=0) np.insert(x,[0,5],7.0) np.insert(V,MASK[0],x[0,:2])
np.insert(x,[],1.0,axis=0) np.insert(x,[1,1,3],B[:,:3],axis=1) np.insert(x,-1,x[0],0) np.insert(V,2,x[0])
np.insert(x,slice(0,2),0.5,axis=1) np.insert(x,0,[1.0,2.0,3.0],axis=1) np.resize(x,(2,3)) np.resize(x,15)
np.unwrap(5*x) np.unwrap(5*x,axis=0) np.unwrap(x,period=0.7) np.unwrap(5*x,discont=4) np.trim_zeros(np.pad(x[0],2))
np.trim_zeros(np.pad(x[0],2),'b') np.choose(IDS%3,x) np.choose(MASK.astype(int),[x,B])
np.choose(IDS-3,[x[0],V],mode='wrap') np.choose(IDS,[x[0],V],mode='clip') np.piecewise(x,[x<0.8,x>1.2],[np.sin,2.0])
np.piecewise(x,[x<0.8,x>1.2],[np.sin,2.0,np.cos]) np.piecewise(x[0],x[0]>1,[np.exp]) np.i0(3*x) np.frexp(5*x)[0]
np.apply_along_axis(np.cumsum,1,x) np.apply_along_axis(np.sum,0,x) np.apply_along_axis(np.diag,1,x)
np.apply_over_axes(np.sum,x,[0,1]) np.apply_over_axes(np.max,x,1) np.histogram(B,4,weights=x)[0]
np.histogram(V,[0.3,0.9,1.7],weights=x[0])[0] np.histogram(B,3,(0.5,1.2),weights=x,density=True)[0]
np.histogram2d(V,B[0],3,weights=x[0])[0] np.histogramdd(B,2,weights=x[:,0])[0] np.poly(x[0]) np.polyadd(x[0],V[:2])
np.polyadd(V[:2],x[0]) np.polysub(V,x[0,:3]) np.polymul(x[0],V[:3]) np.polydiv(x[0],V[:2])[0] np.polydiv(V,x[0,:2])[1]
np.polydiv(V[:2],x[0])[0] np.polyder(x[0]) np.polyder(x[0],2) np.polyint(x[0]) np.polyint(x[0],2,[1.0,2.0])
np.polyfit(np.cumsum(V),x[0],2) np.polyfit(np.cumsum(x[0]),V,1) np.polyfit(np.cumsum(V),x.T,1)
np.polyfit(np.cumsum(V),x[0],1,w=V) np.polyval([[1.0],[2.0]],x) np.linalg.tensorinv(m[None,:,:,None],2)
np.linalg.tensorsolve(m[:,None,None,:],B[:,:1]) np.linalg.tensorsolve(m,x[:,0]) np.linalg.tensorsolve(m,B[:,0],(0,))
np.linalg.multi_dot([x[:,0],m,x,V]) np.linalg.multi_dot([V,x.T,m]) np.linalg.multi_dot([x,V]) np.real_if_close(x)
np.linalg.norm(x,0,axis=1)*np.sum(x) np.pad(x,2,'linear_ramp') np.pad(x,((1,0),(0,2)),'mean') np.pad(x,1,'maximum')
np.pad(x,1,'minimum') np.pad(x,2,'linear_ramp',end_values=1.5) np.float64(2)+x np.float64(2)-x np.float64(2)*x
np.float64(2)/x np.float64(2)**x x@V x+V
""".split()  # noqa: SIM905
CONSTANT = """

np.isnan(h) np.isfinite(h) np.isinf(x) np.isposinf(x) np.isneginf(x) np.equal(x,B) np.not_equal(x,x) np.less(x,B)
np.less_equal(x,B) np.greater(x,B) np.greater_equal(x,B) np.logical_and(x>1,MASK) np.logical_or(x>1,MASK)
np.logical_xor(x>1,MASK) np.logical_not(x>1) np.logical_and.reduce(x>1,axis=1) np.logical_or.reduce(x>1)
np.bitwise_and(k,3) np.bitwise_or(k,1) np.bitwise_xor(k,k+1) np.invert(k) np.left_shift(k,2) np.right_shift(k,1)
np.signbit(x) np.all(x>0.5) np.all(x>0.5,axis=1) np.any(x>1.5,0) np.any(x>1,axis=1,where=MASK)
np.all(x>1,axis=1,where=MASK) np.sum(k) np.sum(k,dtype='int32') np.add.reduce(k,axis=0) np.add(k,1) np.maximum(k,3)
np.round(k) np.count_nonzero(x>1) np.count_nonzero(x>1,axis=1) np.argmax(x) np.argmax(x,axis=1) np.argmin(x,0)
np.argmax(x,axis=1,keepdims=True) np.nanargmax(h,axis=1) np.nanargmin(h,axis=0) np.argsort(x) np.argsort(x,axis=0)
np.argsort(x,axis=None,kind='stable') np.searchsorted(np.sort(V),x) np.searchsorted([0.5,1.0],x,side='right')
np.nonzero(x>1)[0] np.where(x>1)[1] np.argwhere(x>1) np.flatnonzero(x>1) np.digitize(x,[0.5,1.0])
np.digitize(x,[0.5,1.0],right=True) np.isclose(x,B) np.isclose(x,x+1e-9) np.isclose(h,h,equal_nan=True)
np.allclose(x,x) np.allclose(x,B) np.array_equal(x,x) np.array_equal(x,V) np.array_equal(h,h)
np.array_equal(h,h,equal_nan=True) np.array_equiv(V,V[None]) np.array_equiv(x,V[:3]) np.isin(k,[1,2]) np.unique(k)
np.unique(k,return_index=True)[1] np.unique(k,return_counts=True)[1] np.unique(k,return_inverse=True)[1]
np.unique_counts(k)[1] np.bincount(k.reshape(-1)) np.tril_indices_from(x)[0] np.triu_indices_from(x,1)[1]
np.diag_indices_from(m)[0] np.ones_like(x) np.zeros_like(x) np.ones_like(x,dtype='int64') np.zeros_like(x,shape=(2,2))
np.full_like(x,3) np.full_like(k,3) np.shape(x) np.ndim(x) np.size(x) np.size(x,1) np.iscomplexobj(x) np.isrealobj(x)
np.isreal(x) np.iscomplex(x) np.can_cast(x.dtype,'float32') np.linalg.matrix_rank(x) np.array_repr(x) np.array_str(x)
np.array2string(x) np.shares_memory(x,V) np.empty_like(x)*0 np.angle(x) np.angle(-x,deg=True) np.fft.fft(c)
np.fft.ifft(c,axis=0) np.fft.rfft(c,6) np.fft.irfft(c,5,0) np.fft.fft2(c) np.fft.fftn(c,axes=(0,1),norm='ortho')
np.fft.rfft2(c) np.fft.irfft2(c,(3,4)) np.fft.ifft2(c) np.fft.fftshift(c) np.fft.ifftshift(c,axes=1) np.fft.hfft(c,6)
np.histogram(x)[0] np.histogram(x)[1] np.histogram(x,[0.3,0.9,1.7])[0] np.histogram(x,5,(0.5,1.0),True)[0]
np.histogram(x,'auto')[1] np.histogram_bin_edges(x,7) np.histogram2d(x[0],V)[0] np.histogram2d(x[0],V,[2,3])[2]
np.histogramdd(x,2)[0] np.histogramdd([x[0],V],(2,3),density=True)[0] np.histogram(k,3)[0] np.union1d(k,[7,3])
np.intersect1d(k,[0,3,9]) np.intersect1d(k,[3,0,9],return_indices=True)[1] np.setdiff1d(k,[0,3])
np.intersect1d(k,[3,0,9],return_indices=True)[2] np.setxor1d(k,[0,3,9]) np.setdiff1d([5,1,0],k,assume_unique=True)
np.gcd(k,6) np.gcd(k*6,[4,9,0,8]) np.lcm(k,6) np.lcm(k-2,IDS) np.lexsort((k[0],k[1])) np.lexsort(k%2)
np.unravel_index(k,(2,3))[0] np.unravel_index(k,(2,3))[1] np.ravel_multi_index((k%3,k%2),(3,2))
np.ravel_multi_index((k,k),(3,2),mode='clip') np.ix_(k[0],[0,2])[0]
np.ravel_multi_index((k,k),(3,2),mode=('wrap','clip')) np.ix_(k[0],[True,False,True])[1] np.spacing(x) np.spacing(-x)
np.frexp(x)[1] np.frexp(-5*x)[1] np.sort(np.argpartition(x,2)) np.trim_zeros(k[0]) np.resize(k,3) np.polyder(k[0])
np.polymul(k[0],[1,2]) np.partition(k,1) np.einsum_path('ij,jk',x,x.T)[0] np.fft.ihfft(c) np.fft.rfftn(c)
np.fft.irfftn(c) np.fft.ifftn(c)
""".split()  # noqa: SIM905


def evaluate(text, array, convert, names):
    """The expression with x, h (with holes), m (symmetric), k (integers), c (no gradients) made of one array."""
    x = convert(array)
    bound = {
        "x": x, "h": x + np.where(np.isnan(HOLES), np.nan, 0.0), "m": x[:, :3] @ x[:, :3].T + S,
        "k": convert(np.arange(12).reshape(3, 4) % 5), "c": convert(array), "y": convert(B),
    }  # fmt: skip
    return eval(text, {"np": np, "A": A, "B": B, "V": V, "MASK": MASK, "IDS": IDS, **bound, **names})


def needed(text):
    """Skip where this NumPy is older than a function."""
    missing = [n for n in re.findall(r"np\.(\w+)", text) if not hasattr(np, n)]
    assert not missing or set(missing) <= LATER, f"NumPy has no {missing}"
    if missing or ("np.clip" in text and "min=" in text.replace("a_min=", "") and OLD):
        pytest.skip(f"NumPy {np.__version__} has not got it: {text}")


def agrees(text, **names):
    """The value is that of plain NumPy; the gradient is that of NumPy's values, along two directions."""
    want = np.asarray(evaluate(text, A, np.array, names))
    x = gg.tensor(A, requires_grad=True)
    got = evaluate(text, A, lambda a: x if a is A else gg.tensor(a), names)
    assert type(got) is Tensor, text
    assert got.dtype == want.dtype, text
    assert got.shape == want.shape, text
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-12, atol=1e-13, err_msg=text)
    weight = np.cos(np.arange(want.size)).reshape(want.shape)
    if got.requires_grad:
        gg.sum(got * weight).backward()
    gradient = np.zeros_like(A) if x.grad is None else x.grad.numpy()
    for seed in (1, 2):
        direction, step = np.random.default_rng(seed).normal(size=A.shape), 1e-5
        ahead, behind = (evaluate(text, A + s * step * direction, np.array, names) for s in (1, -1))
        slope = np.sum((ahead - behind) * weight) / (2 * step)
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-6, atol=1e-7, err_msg=text)


@pytest.mark.parametrize("text", DIFFERENTIABLE)
def test_value_and_gradient_of_numpys_function(text):
    needed(text)
    agrees(text)


@pytest.mark.parametrize("text", CONSTANT)
def test_numpys_function_without_a_derivative(text):
    want, got = (evaluate(text, A, convert, {}) for convert in (np.array, gg.tensor))
    if not isinstance(got, (Tensor, np.ndarray)):
        assert got == want
        assert type(got) is type(want)
        return
    assert isinstance(got, np.ndarray if "_from" in text else Tensor)
    assert got.shape == np.shape(want)
    assert got.dtype == np.asarray(want).dtype
    np.testing.assert_allclose(np.asarray(got), want, rtol=1e-12, atol=1e-13)


# --- SciPy: the ufuncs of scipy.special as they are, other functions by the Array API with SCIPY_ARRAY_API=1 --------

UFUNCS_OF_SCIPY = """
special.erf(x) special.erfc(x) special.expit(x) special.logit(x/2) special.log_expit(x) special.xlogy(x,B)
special.xlogy(x,y) special.exp2(x) special.expm1(x) special.log1p(x) special.cbrt(x) special.ndtr(x) special.entr(x)
special.rel_entr(x,y) special.xlog1py(x,y) special.erfcx(x) special.erfcinv(x) special.erfinv(x/2) special.ndtri(x/2)
special.log_ndtr(x-2) special.kl_div(x,y) special.i0(9*x) special.i0e(x) special.i1(-x) special.i1e(9*x)
special.gammainc(x,y) special.gammainc(2,9*x) special.gammaincc(9*x,B) special.gammaln(x) special.psi(x)
special.betaln(x,30*y) special.beta(x,y) special.betainc(x,9*y,B/2) special.betainc(3,V,x/2)
""".split()  # noqa: SIM905
BY_ARRAY_API = """
special.logsumexp(x) special.logsumexp(x,axis=1) special.softmax(x,axis=1) special.log_softmax(x,axis=1)
special.xlogy(x,y) special.rel_entr(x,y) special.log_expit(x)
stats.zscore(x) stats.zmap(x,y) stats.gmean(x) stats.hmean(x) stats.pmean(x,2) stats.moment(x,2) stats.skew(x)
stats.variation(x) stats.sem(x) stats.tmean(x) stats.tvar(x) stats.describe(x).variance stats.circmean(x)
stats.trim_mean(x,0.1) stats.boxcox_llf(1.0,x) integrate.trapezoid(x) integrate.cumulative_trapezoid(x)
optimize.rosen(x[0]) optimize.rosen_der(x[0]) linalg.block_diag(x,x) vq.whiten(x)
Rotation.from_rotvec(x[:,:3]).as_matrix()
""".split()  # noqa: SIM905


def scipy_agrees(expressions, **environment):
    """The same comparison in a new process: SciPy reads the variable when it is imported."""
    pytest.importorskip("scipy", minversion="1.17", reason="SciPy 1.17 is not installed")
    program = f"""
from scipy import integrate, linalg, optimize, special, stats
from scipy.cluster import vq
from scipy.spatial.transform import Rotation
from tests.test_protocols import agrees
names = {{n: globals()[n] for n in "integrate linalg optimize special stats vq Rotation".split()}}
for text in {expressions!r}:
    agrees(text, **names)
print("agreed on", {len(expressions)})
"""
    where = {k: v for k, v in os.environ.items() if k != "SCIPY_ARRAY_API"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env={**where, **environment}
    )
    assert done.stdout.endswith(f"agreed on {len(expressions)}\n"), done.stderr


def test_ufuncs_of_scipy():
    scipy_agrees(UFUNCS_OF_SCIPY)


def test_functions_of_scipy_that_follow_the_array_api():
    scipy_agrees(BY_ARRAY_API, SCIPY_ARRAY_API="1")


def test_scipys_minimiser_takes_our_gradients():
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")

    def bowl(x):
        return np.sum((x - np.arange(3.0)) ** 4) + np.sum(x[1:] * x[:-1]) ** 2

    found = optimize.minimize(gg.value_and_grad(bowl), np.ones(3), jac=True, method="BFGS", options={"gtol": 1e-8})
    assert found.success
    np.testing.assert_allclose(gg.grad(bowl)(found.x).numpy(), 0, atol=1e-6)


# --- operators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["+", "-", "*", "/", "**", "//", "%", "@", "<", "<=", ">", ">=", "==", "!="])
def test_operators_of_arrays_are_those_of_tensors(op):
    left, right = A, B.T if op == "@" else B
    x, y = (gg.tensor(a, requires_grad=True) for a in (left, right))
    want = eval(f"left {op} right")
    for a, b in ((x, right), (left, y), (x, y)):
        got = eval(f"a {op} b", {"a": a, "b": b})
        assert type(got) is Tensor
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-15)
        assert got.requires_grad == (op in "+-*/**@%")


@pytest.mark.parametrize("number", [2, 2.5, np.float64(2.5), np.float32(2.5), np.int64(2), np.array(2.5, "float32")])
def test_numbers_of_numpy_are_weak(number):
    x = gg.ones(3, dtype="float32").requires_grad_()
    for got in (number * x, x * number, np.multiply(number, x), np.add(x, number), np.maximum(x, number), number - x):
        assert type(got) is Tensor
        assert got.dtype == gg.float32
    assert (gg.ones(3, dtype="float16") * np.float64(2)).dtype == gg.float16


def test_float32_stays_float32():
    x = gg.tensor(A.astype("float32"), requires_grad=True)
    row = [1.0, 2.0, 3.0, 4.0]
    results = [
        np.sin(x), np.mean(x, axis=0), np.add(x, row), np.std(x), np.var(x, ddof=1), np.median(x), np.gradient(x)[0],
        np.linspace(x[0], 1.0, 3), np.interp(x, [0.0, 2.0], [1.0, 3.0]), np.trapezoid(x), np.average(x, weights=x),
        np.where(x > 1, x, row), np.concatenate([x, [row]]), np.cov(x), np.convolve(x[0], [1.0, 0.5]), np.nanmean(x),
        np.linalg.norm(x), np.round(x, 1), np.full_like(x, 2.0), np.clip(x, 0.5, 1.0), np.hstack([x[0], 1.0]),
    ]  # fmt: skip
    for got in results:
        assert got.dtype == gg.float32
    assert np.mean(x, dtype="float64").dtype == np.add(x, x, dtype=np.float64).dtype == gg.float64


def test_masked_arrays_leave_the_operator_to_the_tensor():
    got = np.ma.array(A) + gg.tensor(A)
    assert type(got) is Tensor
    np.testing.assert_array_equal(got.numpy(), A + A)


class Stranger:
    """An array type of another library that knows what to do with ours."""

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        return "a stranger's " + ufunc.__name__

    def __array_function__(self, func, types, args, kwargs):
        return "a stranger's " + func.__name__


def test_strangers_have_their_turn():
    x = gg.ones(3)
    assert np.add(x, Stranger()) == "a stranger's add"
    assert np.concatenate([x, Stranger()]) == "a stranger's concatenate"
    with pytest.raises(TypeError):
        np.add(x, object())


@pytest.mark.parametrize(
    "operation",
    [
        lambda x, y: BENCH.A + x, lambda x, y: np.float64(2) * x, lambda x, y: np.add(x, y), lambda x, y: np.sin(x),
        lambda x, y: np.multiply(x, 2.5),
    ],
    ids=["array + tensor", "number * tensor", "np.add", "np.sin", "np.multiply"],
)  # fmt: skip
def test_frames_of_a_call_through_numpy(operation):
    """At most two more than between tensors: the protocol, and a Tensor for the array."""
    assert BENCH.forward_frames(operation) <= BENCH.forward_frames(lambda x, y: x + y) + 2


# --- out= and where= ------------------------------------------------------------------------------------------------


def test_out_is_written_as_an_assignment_is():
    x = gg.tensor(A)
    out = view = gg.zeros((3, 4), dtype="float64")
    row = out[0]
    assert np.exp(x, out=out) is out is view
    np.testing.assert_array_equal(row.numpy(), np.exp(A)[0])
    total = gg.zeros(4, dtype="float64")
    assert np.sum(x, 0, None, total) is total
    np.testing.assert_allclose(total.numpy(), A.sum(0))
    assert np.add.reduce(x, out=total) is np.mean(x, axis=0, out=total) is total
    np.testing.assert_allclose(total.numpy(), A.mean(0))
    whole, fraction = gg.zeros((3, 4), dtype="float64"), gg.zeros((3, 4), dtype="float64")
    parts = np.modf(x, out=(fraction, whole))
    assert parts[0] is fraction
    assert parts[1] is whole
    np.testing.assert_array_equal(fraction.numpy(), A - np.trunc(A))
    np.testing.assert_array_equal(whole.numpy(), np.trunc(A))


def test_out_carries_gradients():
    x = gg.tensor(A, requires_grad=True)
    out = np.zeros_like(x)
    np.multiply(x, x, out=out)
    out.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * A)


def test_where_with_out():
    x = gg.tensor(A, requires_grad=True)
    quotient = np.divide(1.0, x - 1.0, out=np.zeros_like(x), where=A > 1)
    quotient.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), np.where(A > 1, -1 / (A - 1) ** 2, 0))
    with pytest.raises(DTypeError, match="give out="):
        np.divide(1.0, x, where=A > 1)


def test_an_array_takes_what_is_no_gradient():
    a = A.copy()
    same = a
    a -= 0.5 * gg.tensor(B)
    assert a is same
    np.testing.assert_array_equal(a, A - 0.5 * B)
    np.copyto(a, gg.tensor(B))
    np.testing.assert_array_equal(a, B)
    x = gg.tensor(B, requires_grad=True)
    with pytest.raises(GraphError, match="would end the gradient"):
        a += x
    with pytest.raises(GraphError, match="would end the gradient"):
        np.copyto(a, x)
    with gg.no_grad():
        a += x
    np.testing.assert_array_equal(a, B + B)


def test_out_refuses():
    x = gg.tensor(A, requires_grad=True)
    with pytest.raises(GraphError, match="leaf"):
        np.add(gg.tensor(A), x, out=x)
    with pytest.raises(DTypeError, match="cannot be written into"):
        np.sin(gg.tensor(A), out=gg.zeros((3, 4), dtype="int64"))
    with pytest.raises(ShapeError):
        np.sum(gg.tensor(A), axis=0, out=gg.zeros(3, dtype="float64"))
    with pytest.raises(DTypeError, match="cannot be written into"):
        np.add(gg.tensor(A), 1, out=np.zeros((3, 4), dtype=int))


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, message",
    [
        ("np.packbits(x)", r"\[numpy.packbits\] gpugrad has no such function"),
        ("np.roots(x[0])", "eigenvalues"),
        ("np.linalg.eig(m)", r"\[numpy.linalg.eig\].*eigh"),
        ("np.bitwise_count(x)", r"\[numpy.bitwise_count\] gpugrad has no such function"),
        ("np.put(x, 0, 1.0)", "leaf"),
        ("np.gcd(x, 2)", "expected integers"),
        ("np.unravel_index(gg.tensor([7]), (2, 3))", "0 <= position < 6"),
        ("np.ravel_multi_index((gg.tensor([3]), gg.tensor([0])), (3, 2))", "0 <= position < 3"),
        ("np.choose(gg.tensor([2]), [x[0, :1], x[1, :1]])", "0 <= position < 2"),
        ("np.insert(x, 9, 0.0, axis=0)", r"\[numpy.insert\] positions \[9\]"),
        ("np.insert(x, 1.5, 0.0)", r"\[numpy.insert\] positions 1.5: expected integers"),
        ("np.linalg.multi_dot([x])", "1 arrays; expected two or more"),
        ("np.linalg.tensorinv(x[None])", "not a square matrix"),
        ("np.linalg.tensorsolve(x, x[0])", "no square matrix"),
        ("np.piecewise(x, [x > 1], [1, 2, 3])", "3 functions for 1 conditions"),
        ("np.polyfit(x[0], x[1], 1, full=True)", "full=True is not supported"),
        ("np.add.at(x, 0, 1.0)", r"\[numpy.add.at\].*x.at\[index\].add"),
        ("np.add.reduceat(x, [0, 1])", r"\[numpy.add.reduceat\]"),
        ("np.take(x, [0], mode='clip')", r"\[numpy.take\] mode='clip' is not supported"),
        ("np.linalg.svd(x, hermitian=True)", "hermitian=True is not supported"),
        ("np.median(x, axis=0, overwrite_input=True, out=None, keepdims='no', foo=1)", "foo"),
        ("np.quantile(x, 0.5, method='lower')", "expected 'linear'"),
        ("np.max(x, where=MASK)", "needs initial="),
        ("np.full_like(x, 1.0, order='F', subok=False, shape=(2,), device='tpu')", "unknown device"),
        ("np.gradient(x, 1.0, 2.0, 3.0)", "3 spacings for 2 axes"),
        ("np.subtract.reduce(x, axis=None)", "expected one axis"),
        ("np.frompyfunc(lambda a: a, 1, 1)(x)", r"\[ufunc.*\] gpugrad has no such function"),
        ("np.linalg.norm(x, 1, axis=(0, 1, 2))", "expected one or two axes"),
    ],
)
def test_what_cannot_be_followed_says_so(text, message):
    x = gg.tensor(A, requires_grad=True)
    names = {"np": np, "gg": gg, "x": x, "m": x[:, :3] @ x[:, :3].T, "MASK": MASK}
    with pytest.raises((GpugradError, TypeError), match=message):
        eval(text, names)


def test_an_error_names_the_users_line():
    x = gg.tensor(A)
    with pytest.raises(DTypeError) as caught:
        np.packbits(x)
    assert "test_protocols.py" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


def test_a_recorded_call_knows_the_users_line():
    x = gg.tensor(A, requires_grad=True)
    for y in (np.sin(x), np.mean(x, axis=0), np.add.reduce(x), np.linalg.inv(x[:, :3])):
        assert "test_protocols.py" in repr(y)


def test_asarray_of_a_graph_is_still_refused():
    x = gg.tensor(A, requires_grad=True)
    for cut in (np.asarray, np.array, lambda v: np.array([v[0, 0], v[0, 1]])):
        with pytest.raises(GraphError, match="is part of a graph"):
            cut(x * 2)


REFUSED = """
bitwise_count busday_count busday_offset common_type datetime_as_string in1d is_busday isnat linalg.eig linalg.eigvals
min_scalar_type packbits roots sort_complex unpackbits
""".split()  # noqa: SIM905


def functions_of_numpy():
    """NumPy's functions that ask their arguments' classes, by name."""
    for prefix, space in (("", np), ("linalg.", np.linalg), ("fft.", np.fft)):
        for name in dir(space):
            func = getattr(space, name)
            if hasattr(func, "_implementation") or isinstance(func, np.ufunc):
                yield prefix + name, func


def test_every_function_of_numpy_is_followed_or_refused_by_name():
    followed = 0
    for name, func in functions_of_numpy():
        table = protocols.UFUNCS if isinstance(func, np.ufunc) else protocols.FUNCTIONS
        if name in REFUSED:
            with pytest.raises(DTypeError, match=rf"^\[numpy\.{name}\] gpugrad has no such function; "):
                table[func]
        else:
            assert callable(table[func])
            followed += 1
    assert followed > 4 * len(REFUSED)


def test_the_page_names_what_is_refused_and_what_works_of_scipy():
    page = (ROOT / "docs" / "numpy.md").read_text()
    listed = page.partition("NumPy's name for it:")[2].partition("##")[0].split()
    assert sorted(listed) == sorted(REFUSED)
    words = set(re.findall(r"\w+", page.partition("## SciPy")[2]))
    for text in UFUNCS_OF_SCIPY + BY_ARRAY_API:
        assert set(re.findall(r"\w+(?=\()", text)) <= words, text


def test_save_and_print(tmp_path):
    x = gg.tensor(A, requires_grad=True)
    np.save(tmp_path / "x.npy", x)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), A)
    np.savez(tmp_path / "x.npz", x=x, y=A)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npz")["x"], A)
    text = io.StringIO()
    np.savetxt(text, x)
    assert len(text.getvalue().splitlines()) == 3
    assert np.array_repr(x) == np.array_repr(A)


def test_second_order_and_other_transformations():
    def f(x):
        return np.sum(np.sin(x) * np.exp(np.mean(x, axis=0))) + np.linalg.norm(x @ x.T)

    x = gg.tensor(A)
    assert gg.gradcheck(f, [x])
    assert gg.gradgradcheck(f, [x])
    ones = gg.ones_like(x)
    np.testing.assert_allclose(gg.jvp(f, (x,), (ones,))[1].numpy(), gg.grad(f)(x).sum().numpy())
    rows = gg.vmap(lambda v: np.sum(np.sort(v) * np.arange(4.0)) + np.max(v))(x)
    np.testing.assert_allclose(rows.numpy(), np.sum(np.sort(A) * np.arange(4.0), axis=1) + A.max(1))


def test_what_grad_gives_back_for_numpy_arrays():
    """Arrays and numbers enter as tensors; gradients are tensors, of the array's dtype."""
    for dtype in ("float32", "float64"):
        g = gg.grad(lambda w: np.sum(np.tanh(w) ** 2))(A.astype(dtype))
        assert type(g) is Tensor
        assert g.dtype == dtype
        moved = A.astype(dtype) - 0.1 * g
        assert type(moved) is Tensor
        assert moved.dtype == dtype


# --- sharing memory -------------------------------------------------------------------------------------------------


versioned = pytest.mark.skipif(OLD, reason="NumPy 2.0 knows neither read-only memory nor copies in DLPack")


def address(x):
    return x.__array_interface__["data"][0]


@versioned
def test_numpy_and_tensors_share_memory_both_ways():
    a = A.copy()
    x = gg.from_dlpack(a)
    assert address(x.data) == address(a)
    back = np.from_dlpack(x)
    assert address(back) == address(a)
    a[0, 0] = 7.0
    assert x[0, 0].item() == back[0, 0] == 7.0
    strided = gg.from_dlpack(a[::2, ::-1])
    np.testing.assert_array_equal(strided.numpy(), a[::2, ::-1])
    assert strided.data.strides == a[::2, ::-1].strides
    assert x.__dlpack_device__() == (1, 0)


@versioned
def test_read_only_memory_stays_read_only():
    a = A.copy()
    a.flags.writeable = False
    x = gg.from_dlpack(a)
    assert address(x.data) == address(a)
    assert not x.data.flags.writeable
    assert not np.from_dlpack(x).flags.writeable
    with pytest.raises(ShapeError, match="read-only"):
        x[0, 0] = 1.0
    with pytest.raises(BufferError):  # the old protocol has no flag for it
        x.__dlpack__()
    assert '"dltensor_versioned"' in repr(x.__dlpack__(max_version=(1, 0)))
    assert '"dltensor"' in repr(gg.tensor(A).__dlpack__())


@versioned
def test_copies_by_dlpack():
    x = gg.tensor(A)
    assert address(np.from_dlpack(x, copy=True)) != address(x.data)
    assert address(gg.from_dlpack(x, copy=True).data) != address(x.data)
    assert address(gg.from_dlpack(x, copy=False).data) == address(x.data)
    with pytest.raises(GraphError, match="detach"):
        np.from_dlpack(gg.tensor(A, requires_grad=True))


def test_torch_and_tensors_share_memory_both_ways():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = gg.tensor(A)
    there = torch.from_dlpack(x)
    assert there.data_ptr() == address(x.data)
    there[0, 0] = 7.0
    assert x[0, 0].item() == 7.0
    source = torch.arange(6.0).reshape(2, 3)
    here = gg.from_dlpack(source)
    assert address(here.data) == source.data_ptr()
    assert here.dtype == gg.float32
    here[1, 2] = -1.0
    assert source[1, 2].item() == -1.0
    assert gg.from_dlpack(source.T).data.strides == (4, 12)
    with pytest.raises(GraphError, match="detach"):
        torch.from_dlpack(gg.tensor(A, requires_grad=True))


def test_a_tensor_of_the_cpu_has_no_device_memory():
    x = gg.tensor(A)
    assert not hasattr(x, "__cuda_array_interface__")
    with pytest.raises(AttributeError, match="on the cpu"):
        x.__cuda_array_interface__  # noqa: B018
